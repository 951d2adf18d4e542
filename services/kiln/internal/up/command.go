package up

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	svc "github.com/kilnbuild/kiln/pkg/service"
)

// Command is `kiln up`.
func Command() *cobra.Command {
	var (
		opts    Options
		detach  bool
		readyFD int
	)
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a registry, buildkitd and the three services on this machine",
		Long: `Runs all of Kiln on this machine: a registry and buildkitd as child processes,
and the builder, the cache manager and the janitor. A child that dies is started
again. All state is in the data directory.

Ctrl-C ends it: running builds have 15 seconds to finish, then all that was
started is gone. A second Ctrl-C does not wait for them.`,
		Example: `  # On the usual ports; state in /var/lib/kiln:
  sudo kiln up

  # Beside another one, in the background, and down again:
  sudo kiln up --data-dir /tmp/kiln --listen-base 7000 --detach
  sudo kiln down --data-dir /tmp/kiln`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if detach {
				return startDetached(cmd, opts)
			}
			return runForeground(cmd, opts, readyFD)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&opts.DataDir, "data-dir", "", "`directory` of all state (default: $XDG_STATE_HOME/kiln, or /var/lib/kiln for root)")
	flags.IntVar(&opts.ListenBase, "listen-base", 0, "`port` N: gRPC on N to N+2, egress proxy on N+3, HTTP on N+10 to N+12, registry on N+20 (default: 50051, 50054, 9461, 5000)")
	flags.StringVar(&opts.RegistryListen, "registry-listen", "", "loopback `address` of the registry, such as 127.0.0.1:5001")
	flags.StringArrayVar(&opts.AllowRoots, "allow-root", nil, "`directory` whose contents requests may name as context; may be given several times (default: the working directory, unless it contains the data directory)")
	flags.StringArrayVar(&opts.AllowNetworks, "allow-network", nil, "`network`, as 10.20.0.0/16, that RUN steps, git repositories and URLs of builds may reach although it is not public; may be given several times")
	flags.BoolVar(&opts.RequireToken, "require-token", false, "refuse callers without a token, which is written for your user alone and which kiln commands find by themselves; the registry stays open to this host's users")
	flags.StringVar(&opts.StepNetwork, "step-network", StepsIsolated, "network of RUN steps: `isolated` (the internet; not this host, no private network) or host (all that this host reaches)")
	flags.StringVar(&opts.StepSubnet, "step-subnet", "", "IPv4 `subnet` of the isolated network, as 10.213.0.0/24 (default: a free one)")
	flags.StringArrayVar(&opts.StepDNS, "step-dns", nil, "`address` of a name server that RUN steps ask; may be given several times (default: those of /etc/resolv.conf, through a forwarder)")
	flags.StringVar(&opts.CNIPlugins, "cni-plugins", "", "`directory` of the CNI plugins bridge, host-local and loopback (default: the distribution's)")
	flags.StringVar(&opts.Buildkitd, "buildkitd", "", "the buildkitd `binary` (default: beside kiln, then $PATH)")
	flags.StringVar(&opts.Registry, "registry", "", "the registry `binary` (default: beside kiln, then $PATH)")
	flags.StringVar(&opts.LogLevel, "log-level", "info", "`level` of the services' logs: debug, info, warn or error")
	flags.DurationVar(&opts.StartTimeout, "start-timeout", defaultStartTimeout, "how long it may take until all serve")
	flags.BoolVar(&detach, "detach", false, "go on in the background once all serve; end with kiln down")
	flags.IntVar(&readyFD, "ready-fd", 0, "file descriptor to report to, for --detach")
	_ = flags.MarkHidden("ready-fd")
	return cmd
}

// runForeground runs until a signal. A second one hurries, a third has its usual
// effect: the kernel then ends the children too.
func runForeground(cmd *cobra.Command, opts Options, readyFD int) error {
	if err := svc.NoCoreDumps(); err != nil { // Builds bring secrets.
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context()))
	defer cancel()
	out := cmd.OutOrStdout()
	hurry := make(chan struct{})
	signals := make(chan os.Signal, 3)
	// SIGHUP too: a closed terminal is no reason to leave mounts behind.
	signal.Notify(signals, os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		select {
		case <-signals:
		case <-ctx.Done():
			return
		}
		fmt.Fprintf(out, "\nstopping: running builds have %s (the same again stops them now)\n", serviceGrace)
		cancel()
		<-signals
		signal.Stop(signals)
		close(hurry)
	}()

	// It names one service; here are three, and two daemons with names of their own.
	if err := os.Unsetenv("OTEL_SERVICE_NAME"); err != nil {
		return err
	}
	report := newReporter(readyFD)
	err := Run(ctx, opts, Session{Out: out, Hurry: hurry, Ready: func(summary string) {
		fmt.Fprint(out, summary)
		if !report.ready(summary) {
			fmt.Fprintln(out, "\nCtrl-C stops it.")
		}
	}})
	if err != nil {
		report.failed(err)
		return err
	}
	fmt.Fprintln(out, "stopped")
	return nil
}

// DownCommand is `kiln down`.
func DownCommand() *cobra.Command {
	var (
		dataDir string
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop a kiln up",
		Long: `Stops the kiln up that uses the data directory, and waits until it has ended.
That none is running is no error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return down(cmd.Context(), cmd.OutOrStdout(), dataDir, timeout)
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "`directory` of the kiln up to stop (default: as for kiln up)")
	cmd.Flags().DurationVar(&timeout, "timeout", 45*time.Second, "how long running builds and the daemons may take before they are killed")
	return cmd
}
