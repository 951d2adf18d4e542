package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// UpOptions says how to run `kiln up`.
type UpOptions struct {
	// DataDir keeps its state. Empty: a new directory of the lab.
	DataDir string
	// Detach runs it with --detach and ends it with `kiln down`, as scripts do;
	// else it is a process of the lab.
	Detach bool
	// Args are added to its arguments. Steps have this host's network unless they say
	// otherwise: tests share the host, whose packet filter is not theirs to change.
	Args []string
	// Env is added to its environment.
	Env []string
}

// Up is a running `kiln up`.
type Up struct {
	// Process is `kiln up` itself. Nil when it is detached.
	*Process
	// DataDir keeps its state.
	DataDir string
	// Base is the port that all others are relative to.
	Base int
	// Builder, CacheManager and Janitor are gRPC addresses, host:port.
	Builder, CacheManager, Janitor string
	// Registry is host:port, as in image references.
	Registry string
	// Buildkitd is the daemon's own address, "unix:///…".
	Buildkitd string
}

// StartUp runs `kiln up` on free ports and waits until all three services serve.
func (l *Lab) StartUp(ctx context.Context, opts UpOptions) (*Up, error) {
	path, err := Bin("kiln")
	if err != nil {
		return nil, err
	}
	if opts.DataDir == "" {
		if opts.DataDir, err = l.subdir("up"); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(opts.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if opts.DataDir, err = filepath.EvalSymlinks(opts.DataDir); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	// Registered before anything can go wrong, so that it runs last.
	l.OnClose("kiln up state", func(ctx context.Context) error { return Clean(ctx, opts.DataDir) })
	for try := 1; ; try++ {
		up, err := l.tryUp(ctx, path, opts)
		if err == nil {
			return up, nil
		}
		if try == 3 || !strings.Contains(err.Error(), "in use") || ctx.Err() != nil {
			return nil, err
		}
	}
}

func (l *Lab) tryUp(ctx context.Context, path string, opts UpOptions) (*Up, error) {
	base, err := FreeBase()
	if err != nil {
		return nil, err
	}
	port := func(offset int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(base+offset)) }
	up := &Up{
		DataDir: opts.DataDir, Base: base,
		Builder: port(0), CacheManager: port(1), Janitor: port(2), Registry: port(20),
	}
	buildkitd, err := Bin("buildkitd")
	if err != nil {
		return nil, err
	}
	registry, err := Bin("registry")
	if err != nil {
		return nil, err
	}
	args := append([]string{
		"up", "--data-dir", opts.DataDir, "--listen-base", strconv.Itoa(base), "--buildkitd", buildkitd, "--registry", registry,
		"--step-network", "host",
	}, opts.Args...)
	if opts.Detach {
		l.OnClose("kiln up", func(ctx context.Context) error { return Down(ctx, opts.DataDir) })
		if _, err := Exec(ctx, Command{Path: path, Args: append(args, "--detach"), Env: opts.Env}); err != nil {
			return nil, err
		}
	} else if up.Process, err = l.Run(Command{Name: "kiln-up", Path: path, Args: args, Env: opts.Env}); err != nil {
		return nil, err
	}
	for _, addr := range []string{up.Builder, up.CacheManager, up.Janitor} {
		if err := WaitServing(ctx, up.Process, addr); err != nil {
			return nil, err
		}
	}
	up.Buildkitd, err = buildkitdOf(opts.DataDir)
	return up, err
}

var addressLine = regexp.MustCompile(`(?m)^ *address = \[ *"(unix://[^"]+)"`)

// buildkitdOf reads the daemon's address from the configuration that `kiln up`
// wrote: its socket is not in the data directory when that has a long path.
func buildkitdOf(dataDir string) (string, error) {
	path := filepath.Join(dataDir, "config", "buildkitd.toml")
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	m := addressLine.FindSubmatch(data)
	if m == nil {
		return "", fmt.Errorf("lab: no unix address in %s", path)
	}
	return string(m[1]), nil
}

// Down runs `kiln down` for a data directory.
func Down(ctx context.Context, dataDir string) error {
	path, err := Bin("kiln")
	if err != nil {
		return err
	}
	_, err = Exec(ctx, Command{Path: path, Args: []string{"down", "--data-dir", dataDir}})
	return err
}
