package buildkitd

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Address is where a daemon listens: a unix socket, or a host and a port.
type Address struct {
	socket string // path of the unix socket; empty: host
	host   string // host:port
}

// maxSocketPath is the longest path of a unix socket on Linux, in bytes.
const maxSocketPath = 107

// Refusals of BuildKit's other forms, by scheme. BuildKit's commands reach some of them through
// a program that they start (docker, kubectl, ssh); a service does not start programs with its own rights.
var refused = map[string]string{
	"docker-container":  "Kiln does not run docker exec",
	"podman-container":  "Kiln does not run podman exec",
	"nerdctl-container": "Kiln does not run nerdctl exec",
	"kube-pod":          "Kiln does not run kubectl exec",
	"ssh":               "Kiln does not run ssh",
	"npipe":             "named pipes exist on Windows only",
	"fd":                "a daemon listens on an inherited file descriptor, but a client cannot connect to one",
	"http":              "buildkitd speaks gRPC",
	"https":             "buildkitd speaks gRPC; for TLS, use tcp:// and set the certificates",
}

// Remedies of the forms that need another address on the daemon's side.
const (
	remedyForms = "write unix:///path/to/buildkitd.sock or tcp://host:port"
	remedyReach = "let the daemon listen on a unix socket or a TCP port that this host reaches, or forward one " +
		"(for example ssh -L /run/kiln/remote.sock:/run/buildkit/buildkitd.sock HOST), and write unix:///path or tcp://host:port"
)

// ParseAddress reads the address of a daemon: "unix:///path" or "tcp://host:port", as BuildKit's
// clients write it. Any other form is an INVALID_ARGUMENT fault that says what to write instead.
func ParseAddress(text string) (Address, error) {
	invalid := func(message, remedy string) (Address, error) {
		return Address{}, fault.Invalid("address", text, message, remedy)
	}
	if text == "" {
		return invalid("the daemon has no address", remedyForms)
	}
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		return invalid(fmt.Sprintf("the address of the daemon, %q, has no scheme", text), remedyForms)
	}
	switch scheme = strings.ToLower(scheme); scheme {
	case "unix":
		return parseSocket(rest, invalid)
	case "tcp":
		return parseHost(rest, invalid)
	}
	if why, known := refused[scheme]; known {
		return invalid(fmt.Sprintf("cannot connect to a daemon at %s://: %s", scheme, why), remedyReach)
	}
	return invalid(fmt.Sprintf("the address of the daemon has the unknown scheme %q", scheme), remedyForms)
}

func parseSocket(path string, invalid func(message, remedy string) (Address, error)) (Address, error) {
	switch {
	case !filepath.IsAbs(path):
		return invalid("the path of the daemon's socket is not absolute", "write unix:///path, with three slashes")
	case len(path) > maxSocketPath:
		return invalid(fmt.Sprintf("the path of the daemon's socket has %d bytes, and Linux allows %d", len(path), maxSocketPath),
			"choose a shorter path")
	}
	return Address{socket: path}, nil
}

func parseHost(rest string, invalid func(message, remedy string) (Address, error)) (Address, error) {
	uri, err := url.Parse("tcp://" + rest)
	if err != nil {
		return invalid("the address of the daemon cannot be read: "+err.Error(), remedyForms)
	}
	port, err := strconv.ParseUint(uri.Port(), 10, 16)
	switch _, _, splitErr := net.SplitHostPort(uri.Host); {
	case uri.Hostname() == "":
		return invalid("the address of the daemon has no host", remedyForms)
	case uri.Port() == "":
		return invalid("the address of the daemon has no port", "write tcp://host:port; buildkitd usually listens on 1234 or 8372")
	case splitErr != nil:
		return invalid("the address of the daemon cannot be read: "+splitErr.Error(), "write tcp://host:port, and an IPv6 address in brackets")
	case err != nil || port == 0:
		return invalid(fmt.Sprintf("the port of the daemon, %q, is not a number from 1 to 65535", uri.Port()), remedyForms)
	case uri.User != nil || strings.Trim(uri.Path, "/") != "" || uri.RawQuery != "" || uri.Fragment != "":
		return invalid("the address of the daemon has more than a host and a port", remedyForms)
	}
	return Address{host: uri.Host}, nil
}

// String returns the address as ParseAddress reads it.
func (a Address) String() string {
	if a.socket != "" {
		return "unix://" + a.socket
	}
	return "tcp://" + a.host
}

// target returns the address as gRPC reads it. The name of a host is looked up at each attempt to
// connect, and not by gRPC's resolver, which asks again only after 30 s: too late for a
// daemon that has come back at another address.
func (a Address) target() string {
	if a.socket != "" {
		return a.String()
	}
	return "passthrough:///" + a.host
}

// Local reports whether only this host can reach the address, so that what is sent to it without
// TLS cannot be read on the way.
func (a Address) Local() bool {
	if a.socket != "" {
		return true
	}
	host, _, err := net.SplitHostPort(a.host)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
