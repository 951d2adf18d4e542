package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// BuildkitdOptions says how to run a buildkitd. The zero value is a daemon
// without garbage collection, telemetry and registries.
type BuildkitdOptions struct {
	// Registries are host:port of registries that are spoken to in plain HTTP.
	Registries []string
	// OTLP is the address (host:port) of an OTLP collector, gRPC without TLS, for
	// the daemon's spans. Empty: none.
	OTLP string
	// GC turns on the daemon's own garbage collection.
	GC bool
	// MaxParallelism bounds the steps that run at once. 0: 4, as in the guide.
	MaxParallelism int
	// Entitlements are rights that the daemon gives to builds that ask for them, such
	// as "network.host".
	Entitlements []string
	// Containerd is the socket of a containerd that runs the steps, in place of runc.
	Containerd string
	// TLS has it listen on TCP, too, for clients with certificates.
	TLS *configv1.ServerTLS
	// CgroupParent is the cgroup below which the steps have theirs.
	CgroupParent string
	// Root is the directory of the daemon's state. Empty: one in Buildkitd.Dir.
	Root string
	// Env is added to its environment.
	Env []string
	// ResolvConf is what it takes for /etc/resolv.conf; see Command.
	ResolvConf string
	// TOML is added to the daemon's configuration.
	TOML string
	// Config is a configuration file in place of the lab's, of which only the places
	// of the daemon's state and sockets are overridden, and the network of steps, which
	// is the host's. All options above but Env and ResolvConf are then without effect.
	Config string
}

// Buildkitd is a buildkitd daemon with runc as its OCI worker.
type Buildkitd struct {
	*Process
	// Addr is its address, "unix:///…", and TCP that for clients with certificates.
	Addr, TCP string
	// Dir holds its configuration, its socket and all its state.
	Dir string

	lab *Lab
	cmd Command
}

// StartBuildkitd runs a daemon with no state, and waits until it answers.
func (l *Lab) StartBuildkitd(ctx context.Context, opts BuildkitdOptions) (*Buildkitd, error) {
	path, err := Bin("buildkitd")
	if err != nil {
		return nil, err
	}
	if _, err := lookRunc(); err != nil {
		return nil, err
	}
	dir, err := l.subdir("buildkitd")
	if err != nil {
		return nil, err
	}
	sock := filepath.Join(dir, "d.sock")
	if len(sock) > maxSocketPath {
		return nil, fmt.Errorf("lab: socket path is too long: %s", sock)
	}
	args := []string{
		"--config", opts.Config, "--root", filepath.Join(dir, "root"), "--addr", "unix://" + sock,
		"--otel-socket-path", filepath.Join(dir, "otel.sock"), "--oci-worker-net", "host", "--containerd-worker-net", "host",
	}
	tcp := ""
	if opts.TLS != nil {
		if tcp, err = FreeAddr(); err != nil {
			return nil, err
		}
		tcp = "tcp://" + tcp
	}
	if opts.Config == "" {
		config := filepath.Join(dir, "buildkitd.toml")
		if err := os.WriteFile(config, []byte(buildkitdTOML(dir, sock, tcp, opts)), 0o600); err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		args = []string{"--config", config}
	}
	b := &Buildkitd{
		TCP: tcp, Addr: "unix://" + sock, Dir: dir, lab: l,
		cmd: Command{
			Name: filepath.Base(dir), Path: path, Args: args,
			Env: append(OTLPEnv(opts.OTLP, "buildkitd"), opts.Env...), ResolvConf: opts.ResolvConf,
		},
	}
	// Registered first, so that it runs after the daemon's end.
	l.OnClose(b.cmd.Name+" state", func(ctx context.Context) error { return Clean(ctx, dir) })
	return b, b.Start(ctx)
}

// Start starts the daemon again after Stop or Kill, on the state that it left.
func (b *Buildkitd) Start(ctx context.Context) error {
	p, err := b.lab.Run(b.cmd)
	if err != nil {
		return err
	}
	b.Process = p
	return WaitServing(ctx, p, b.Addr)
}

// Kill ends the daemon as a crash would, with SIGKILL, and clears the containers
// and mounts that it leaves. Its state stays, for Start.
func (b *Buildkitd) Kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	return errors.Join(b.Process.Kill(), Clean(ctx, b.Dir))
}

func buildkitdTOML(dir, sock, tcp string, opts BuildkitdOptions) string {
	parallelism := opts.MaxParallelism
	if parallelism == 0 {
		parallelism = 4
	}
	var t strings.Builder
	root := opts.Root
	if root == "" {
		root = filepath.Join(dir, "root")
	}
	fmt.Fprintf(&t, "root = %q\n", root)
	fmt.Fprintf(&t, "insecure-entitlements = [")
	for _, right := range opts.Entitlements {
		fmt.Fprintf(&t, "%q,", right)
	}
	if opts.TLS == nil {
		fmt.Fprintf(&t, "]\n[grpc]\n  address = [%q]\n", "unix://"+sock)
	} else {
		fmt.Fprintf(&t, "]\n[grpc]\n  address = [%q, %q]\n[grpc.tls]\n  cert = %q\n  key = %q\n  ca = %q\n", "unix://"+sock, tcp,
			opts.TLS.GetCertFile(), opts.TLS.GetKeyFile(), opts.TLS.GetClientCaFile())
	}
	// Without a path of its own, all daemons of the machine share one.
	fmt.Fprintf(&t, "[otel]\n  socketPath = %q\n", filepath.Join(dir, "otel.sock"))
	fmt.Fprintf(&t, "[cdi]\n  disabled = true\n")
	fmt.Fprintf(&t, "[worker.oci]\n  enabled = %t\n  gc = %t\n  max-parallelism = %d\n", opts.Containerd == "", opts.GC, parallelism)
	if opts.CgroupParent != "" {
		fmt.Fprintf(&t, "  defaultCgroupParent = %q\n", opts.CgroupParent)
	}
	if opts.Containerd != "" {
		fmt.Fprintf(&t, "[worker.containerd]\n  enabled = true\n  address = %q\n  gc = %t\n  max-parallelism = %d\n", opts.Containerd, opts.GC, parallelism)
	} else {
		fmt.Fprintf(&t, "[worker.containerd]\n  enabled = false\n")
	}
	for _, r := range opts.Registries {
		fmt.Fprintf(&t, "[registry.%q]\n  http = true\n  insecure = true\n", r)
	}
	return t.String() + opts.TOML
}

// OTLPEnv returns the variables that make a process send its spans, under the
// name of a service, to an OTLP collector at host:port, soon after they end. An
// empty address gives variables that turn telemetry off.
func OTLPEnv(addr, service string) []string {
	if addr == "" {
		return []string{"OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none"}
	}
	return []string{
		"OTEL_TRACES_EXPORTER=otlp", "OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none",
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + addr, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
		"OTEL_SERVICE_NAME=" + service, "OTEL_BSP_SCHEDULE_DELAY=100",
	}
}
