package up

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Options says how to run Kiln on this machine.
type Options struct {
	// DataDir holds all state. Empty: see DefaultDataDir.
	DataDir string
	// ListenBase N puts gRPC on ports N to N+2, the egress proxy on N+3, HTTP on
	// N+10 to N+12 and the registry on N+20. 0: 50051 to 50054, 9461 to 9463, 5000.
	ListenBase int
	// RegistryListen is the registry's loopback address, host:port. Empty: as
	// ListenBase says.
	RegistryListen string
	// AllowRoots are the directories that a request may name as its context.
	// Empty: the working directory, unless that is the root directory or contains
	// the data directory.
	AllowRoots []string
	// rootsByDefault says that AllowRoots is the working directory because nothing
	// else was named.
	rootsByDefault bool
	// AllowNetworks are networks in CIDR form that sources of builds may come from,
	// and that steps may reach, although they are not public.
	AllowNetworks []string
	// RequireToken has every service refuse callers without the token that kiln up
	// writes for the user who runs it.
	RequireToken bool
	// StepNetwork is the network of RUN steps, StepsIsolated or StepsOnHost. Empty:
	// StepsIsolated.
	StepNetwork string
	// StepSubnet is the IPv4 subnet of an isolated network, in CIDR form. Empty: one
	// that is free.
	StepSubnet string
	// StepDNS are the name servers that steps ask. Empty: a forwarder to this host's.
	StepDNS []string
	// CNIPlugins is the directory of the CNI plugins. Empty: that of the distribution.
	CNIPlugins string
	// Buildkitd and Registry are the binaries. Empty: beside kiln, then $PATH.
	Buildkitd, Registry string
	// LogLevel is that of the services. Empty: info.
	LogLevel string
	// StartTimeout is how long it may take until all serve. 0: 60s.
	StartTimeout time.Duration
}

// Networks of RUN steps.
const (
	// StepsIsolated is a network of their own: the internet, and nothing of this
	// host and of private networks but what AllowNetworks says.
	StepsIsolated = "isolated"
	// StepsOnHost is this host's network: steps reach all that this host reaches,
	// the services of Kiln included.
	StepsOnHost = "host"
)

const defaultStartTimeout = 60 * time.Second

// DefaultDataDir is $XDG_STATE_HOME/kiln, else /var/lib/kiln for root and
// ~/.local/state/kiln for others.
func DefaultDataDir() (string, error) {
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "kiln"), nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/kiln", nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fault.Wrap(err, fault.FailedPrecondition, "", "no home directory to keep state in", "use --data-dir")
	}
	return filepath.Join(home, ".local", "state", "kiln"), nil
}

// complete returns opts with absolute paths and its defaults.
func (o Options) complete() (Options, error) {
	var err error
	if o.DataDir == "" {
		if o.DataDir, err = DefaultDataDir(); err != nil {
			return o, err
		}
	}
	if o.DataDir, err = filepath.Abs(o.DataDir); err != nil {
		return o, err
	}
	roots := o.AllowRoots
	if len(roots) == 0 {
		roots, o.rootsByDefault = []string{"."}, true
	}
	o.AllowRoots = nil
	for _, root := range roots {
		if root, err = filepath.Abs(root); err != nil {
			return o, err
		}
		if info, err := os.Stat(root); err != nil || !info.IsDir() {
			return o, fault.Invalid("--allow-root", root, fmt.Sprintf("%s is not a directory", root), "name one that exists")
		}
		o.AllowRoots = append(o.AllowRoots, root)
	}
	if o.StartTimeout <= 0 {
		o.StartTimeout = defaultStartTimeout
	}
	return o, nil
}

// addresses is what listens where, as host:port.
type addresses struct {
	builder, builderHTTP           string
	cacheManager, cacheManagerHTTP string
	janitor, janitorHTTP           string
	registry, egress               string
}

// lastBase leaves room for the highest port, the registry's.
const lastBase = 65535 - 20

func (o Options) addresses() (addresses, error) {
	grpc, http, registry := 50051, 9461, 5000
	if base := o.ListenBase; base != 0 {
		if base < 1 || base > lastBase {
			return addresses{}, fault.Invalid("--listen-base", strconv.Itoa(base),
				fmt.Sprintf("%d is not a port between 1 and %d", base, lastBase), "choose one in that range")
		}
		grpc, http, registry = base, base+10, base+20
	}
	local := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	a := addresses{
		builder: local(grpc), builderHTTP: local(http),
		cacheManager: local(grpc + 1), cacheManagerHTTP: local(http + 1),
		janitor: local(grpc + 2), janitorHTTP: local(http + 2),
		registry: local(registry), egress: local(grpc + 3),
	}
	if o.RegistryListen != "" {
		var err error
		if a.registry, err = loopback(o.RegistryListen); err != nil {
			return addresses{}, err
		}
	}
	return a, nil
}

// loopback checks the registry's address: it has no credentials and no TLS, so
// nobody else may reach it.
func loopback(address string) (string, error) {
	refuse := func(why string) (string, error) {
		return "", fault.Invalid("--registry-listen", address, fmt.Sprintf("%q %s", address, why), "give it as 127.0.0.1:5000")
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return refuse("is not host:port")
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.IsLoopback() {
		return refuse("is not a loopback address, and this registry has no credentials")
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		return refuse("has no port between 1 and 65535")
	}
	return net.JoinHostPort(host, port), nil
}

// registryName is the registry in image names. Clients and daemons take
// localhost as one that may be spoken to without TLS.
func (a addresses) registryName() string {
	host, port, _ := net.SplitHostPort(a.registry)
	if host == "127.0.0.1" {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

// registryNames is every name that a build may call the registry by.
func (a addresses) registryNames() []string {
	names := []string{a.registryName()}
	if a.registry != names[0] {
		names = append(names, a.registry)
	}
	return names
}
