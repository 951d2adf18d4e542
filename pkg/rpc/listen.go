package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

const (
	unixScheme = "unix://"
	httpOff    = "off"
	// maxUnixPath is the longest path of a unix socket that Linux takes, in bytes.
	maxUnixPath = 107
)

// bind listens on the addresses of the configuration. TLS is nil for plain text.
func (s *Server) bind(cfg *configv1.ServerConfig, tlsConfig *tls.Config) (err error) {
	if s.listener, err = listen("server.listen", cfg.GetListen()); err != nil {
		return err
	}
	web := cfg.GetHttpListen()
	if web == "" || web == httpOff {
		return nil
	}
	if s.httpSide, err = listen("server.http_listen", web); err != nil {
		return err
	}
	if !IsLocal(web) && tlsConfig != nil {
		s.httpSide = tls.NewListener(s.httpSide, forProbes(tlsConfig))
	}
	return nil
}

// checkExposure refuses what would serve strangers by mistake.
func checkExposure(cfg *configv1.ServerConfig) error {
	if cfg.GetListen() == "" {
		return fault.Invalid("server.listen", "", "no address to listen on", "set it to host:port or unix:///path")
	}
	if cfg.GetInsecure() || cfg.GetTls() != nil {
		return nil
	}
	for _, a := range []struct{ field, address string }{
		{"server.listen", cfg.GetListen()}, {"server.http_listen", cfg.GetHttpListen()},
	} {
		if a.address == "" || a.address == httpOff || IsLocal(a.address) {
			continue
		}
		return fault.Invalid(a.field, a.address,
			fmt.Sprintf("%s can be reached by others, and there are no certificates", a.address),
			"set server.tls, or listen on loopback or a unix socket; server.insecure: true allows plain text, for closed test networks only")
	}
	return nil
}

// IsLocal says whether only this host can reach an address.
func IsLocal(address string) bool {
	if strings.HasPrefix(address, unixScheme) {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// listen binds one address. Field names the setting in errors.
func listen(field, address string) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(address, unixScheme)
	network, target := "tcp", address
	if isUnix {
		network, target = "unix", path
		if err := clearSocket(field, path); err != nil {
			return nil, err
		}
	}
	// Bounded, since the host in the address may need a name server.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	l, err := new(net.ListenConfig).Listen(ctx, network, target)
	if err != nil {
		return nil, cannotListen(err, field, address)
	}
	if isUnix {
		if err := os.Chmod(path, 0o660); err != nil {
			return nil, errors.Join(cannotListen(err, field, address), l.Close())
		}
	}
	return l, nil
}

func cannotListen(err error, field, address string) error {
	f := fault.Wrap(err, fault.FailedPrecondition, "", "cannot listen on "+address, "choose another address with --set "+field+"=…")
	if errors.Is(err, syscall.EADDRINUSE) {
		f.Err = errors.New("the address is in use by another process")
		f.Remedy = "stop that process, or choose another address with --set " + field + "=…"
	}
	f.Field = field
	return f
}

// clearSocket removes a socket that nobody listens on any more.
func clearSocket(field, path string) error {
	if len(path) > maxUnixPath {
		return fault.Invalid(field, path, fmt.Sprintf("the path of a unix socket has at most %d bytes, this one has %d", maxUnixPath, len(path)), "choose a shorter path")
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil //nolint:nilerr // Nothing there, or listen says what is wrong.
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fault.Invalid(field, path, path+" exists and is no socket", "choose another path")
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
		return cannotListen(syscall.EADDRINUSE, field, unixScheme+path)
	}
	if err := os.Remove(path); err != nil {
		return cannotListen(err, field, unixScheme+path)
	}
	return nil
}

func address(l net.Listener) string {
	if l == nil {
		return ""
	}
	if l.Addr().Network() == "unix" {
		return unixScheme + l.Addr().String()
	}
	return l.Addr().String()
}
