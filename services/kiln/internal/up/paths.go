package up

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// maxSocketPath leaves room below the 107 bytes that a unix socket's path may
// have, for buildkitd's own use.
const maxSocketPath = 100

// paths is the layout of the data directory.
type paths struct {
	root    string
	sockets string // The root, or elsewhere when the path would be too long.
}

func (p paths) lock() string              { return filepath.Join(p.root, "lock") }
func (p paths) config(name string) string { return filepath.Join(p.root, "config", name) }
func (p paths) log(name string) string    { return filepath.Join(p.root, "logs", name+".log") }
func (p paths) buildkit() string          { return filepath.Join(p.root, "buildkit") }
func (p paths) registry() string          { return filepath.Join(p.root, "registry") }
func (p paths) builder() string           { return filepath.Join(p.root, "builder") }
func (p paths) cacheManager() string      { return filepath.Join(p.root, "cachemanager") }
func (p paths) janitor() string           { return filepath.Join(p.root, "janitor") }
func (p paths) eventsSecret() string {
	return filepath.Join(p.root, "config", "registry-events.secret")
}
func (p paths) token() string  { return p.config("token") }
func (p paths) tokens() string { return p.config("tokens.yaml") }
func (p paths) ipam() string   { return filepath.Join(p.root, "step-addresses") }
func (p paths) cni() string    { return p.config("cni.conflist") }

// namespaces holds the network namespaces of steps. buildkitd makes it and, when it
// starts, removes what is in it.
func (p paths) namespaces() string     { return filepath.Join(p.buildkit(), "net") }
func (p paths) tmp() string            { return filepath.Join(p.root, "buildkit-tmp") }
func (p paths) buildkitSocket() string { return filepath.Join(p.sockets, "buildkitd.sock") }
func (p paths) traceSocket() string    { return filepath.Join(p.sockets, "otel-grpc.sock") }

// outside says whether the sockets are not in the data directory.
func (p paths) outside() bool { return p.sockets != p.root }

// makePaths makes the data directory and what is in it. The path that it returns
// has no symbolic links, as the kernel shows it in its tables.
func makePaths(dataDir string) (paths, error) {
	cannot := func(err error) (paths, error) {
		return paths{}, fault.Wrap(err, fault.FailedPrecondition, "", "cannot use the data directory "+dataDir, "choose another one with --data-dir")
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return cannot(err)
	}
	root, err := filepath.EvalSymlinks(dataDir)
	if err != nil {
		return cannot(err)
	}
	p := paths{root: root, sockets: socketDir(root, "/run")}
	if err := ownOrEmpty(p); err != nil {
		return paths{}, err
	}
	// The lock's file is also what says that the directory is Kiln's.
	lock, err := os.OpenFile(p.lock(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return cannot(err)
	}
	if err := lock.Close(); err != nil {
		return cannot(err)
	}
	for _, dir := range []string{p.config(""), filepath.Dir(p.log("")), p.buildkit(), p.registry(), p.tmp()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return cannot(err)
		}
	}
	return p, nil
}

// ownOrEmpty refuses a directory that holds something and was never a data
// directory: kiln up removes what an earlier one has left, and nothing else.
func ownOrEmpty(p paths) error {
	if _, err := os.Stat(p.lock()); err == nil {
		return nil
	}
	entries, err := os.ReadDir(p.root)
	if err != nil {
		return fault.Wrap(err, fault.FailedPrecondition, "", "cannot use the data directory "+p.root, "choose another one with --data-dir")
	}
	if len(entries) == 0 {
		return nil
	}
	return fault.New(fault.FailedPrecondition, "",
		fmt.Sprintf("data directory %s is not Kiln's: it holds %q and no lock file of kiln up", p.root, entries[0].Name()),
		"name a new or empty directory with --data-dir")
}

// socketDir is the data directory, or a short directory of the system's that is
// this data directory's alone.
func socketDir(root, system string) string {
	if len(filepath.Join(root, "buildkitd.sock")) <= maxSocketPath {
		return root
	}
	sum := sha256.Sum256([]byte(root))
	return filepath.Join(system, fmt.Sprintf("kiln-%s", hex.EncodeToString(sum[:6])))
}
