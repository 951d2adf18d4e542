package up

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/kiln/internal/portowner"
)

// needRoot refuses other users before anything is touched.
func needRoot() error {
	if os.Geteuid() == 0 {
		return nil
	}
	return fault.New(fault.PermissionDenied, "",
		"kiln up needs root: buildkitd mounts file systems and runs containers", "run it with sudo")
}

// binaries are the programs that kiln up runs.
type binaries struct {
	buildkitd, registry, runc string
}

// systemPath is where runc may be that is not on every user's $PATH.
const systemPath = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"

func findBinaries(opts Options) (binaries, error) {
	var found binaries
	var err error
	if found.buildkitd, err = findBinary("buildkitd", opts.Buildkitd); err != nil {
		return found, err
	}
	if found.registry, err = findBinary("registry", opts.Registry); err != nil {
		return found, err
	}
	// The names that buildkitd looks for, in its order.
	for _, name := range []string{"buildkit-runc", "runc"} {
		if path, ok := lookPath(name); ok {
			found.runc = path
			return found, nil
		}
	}
	return found, fault.New(fault.FailedPrecondition, "", "runc, which runs the steps of a build, is not installed",
		"install the package runc of your distribution")
}

// findBinary looks where the flag says, else beside kiln itself, else on $PATH.
func findBinary(name, flag string) (string, error) {
	if flag != "" {
		path, err := filepath.Abs(flag)
		if err != nil || !executable(path) {
			return "", fault.Invalid("--"+name, flag, flag+" is not a program", "name the "+name+" binary")
		}
		return path, nil
	}
	self, err := os.Executable()
	if err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			if path := filepath.Join(filepath.Dir(self), name); executable(path) {
				return path, nil
			}
		}
	}
	if path, ok := lookPath(name); ok {
		return path, nil
	}
	return "", fault.New(fault.FailedPrecondition, "",
		fmt.Sprintf("%s is neither beside kiln (%s) nor on $PATH", name, filepath.Dir(self)),
		"install it, or name it with --"+name)
}

func lookPath(name string) (string, bool) {
	if path, err := exec.LookPath(name); err == nil {
		path, err = filepath.Abs(path)
		return path, err == nil
	}
	for _, dir := range filepath.SplitList(systemPath) {
		if path := filepath.Join(dir, name); executable(path) {
			return path, true
		}
	}
	return "", false
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// checkPorts makes sure that all addresses are free, and names the owner of the
// first that is not.
func checkPorts(ctx context.Context, a addresses) error {
	parts := []struct{ name, address, flag string }{
		{"the builder", a.builder, "--listen-base"},
		{"the builder's HTTP", a.builderHTTP, "--listen-base"},
		{"the cache manager", a.cacheManager, "--listen-base"},
		{"the cache manager's HTTP", a.cacheManagerHTTP, "--listen-base"},
		{"the janitor", a.janitor, "--listen-base"},
		{"the janitor's HTTP", a.janitorHTTP, "--listen-base"},
		{"the egress proxy", a.egress, "--listen-base"},
		{"the registry", a.registry, "--registry-listen"},
	}
	seen := map[string]string{}
	for _, part := range parts {
		if other, twice := seen[part.address]; twice {
			return fault.Invalid(part.flag, "", fmt.Sprintf("%s is for %s and for %s", part.address, other, part.name), "choose another address")
		}
		seen[part.address] = part.name
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", part.address)
		if err == nil {
			err = listener.Close()
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			return taken(part.name, part.address, part.flag)
		}
		if err != nil {
			return fault.Wrap(err, fault.FailedPrecondition, "", fmt.Sprintf("%s cannot listen on %s", part.name, part.address),
				"choose another address with "+part.flag)
		}
	}
	return nil
}

func taken(name, address, flag string) error {
	by := "another process"
	if parsed, err := netip.ParseAddrPort(address); err == nil {
		if owner, ok := portowner.Find(parsed); ok {
			by = owner.String()
		}
	}
	remedy := "stop it, or choose other ports with " + flag
	if flag != "--listen-base" {
		remedy = "stop it, or choose another port with " + flag + " or --listen-base"
	}
	return fault.New(fault.FailedPrecondition, "", fmt.Sprintf("%s, for %s, is in use by %s", address, name, by), remedy)
}
