package stepnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// flags are the flags of `kiln step-network`.
type flags struct {
	cniConfig, bridge, subnet string
	networks, denied, servers []string
	check                     bool
}

// Command is `kiln step-network`.
func Command() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "step-network",
		Short: "Keep RUN steps of a buildkitd on this host away from the host and from private networks",
		Long: `Makes the bridge that a buildkitd connects the RUN steps of builds to, installs a
packet filter, answers the steps' DNS queries, and runs until it is told to end.
Steps reach the internet, and nothing of this host nor of private networks but
what --allow-network says.

It is for a buildkitd that something else runs, such as systemd: kiln up does all
of this by itself. It starts before buildkitd and ends after it. When it ends
while steps are connected, the packet filter stays.`,
		Example: `  # Beside a buildkitd with networkMode = "cni" and this cniConfigPath:
  sudo kiln step-network --cni-config /etc/buildkit/cni.conflist

  # Steps may reach a package mirror inside:
  sudo kiln step-network --cni-config /etc/buildkit/cni.conflist --allow-network 10.20.0.7/32`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			if f.check {
				return check(cfg)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			return serve(ctx, cfg, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
		},
	}
	set := cmd.Flags()
	set.SortFlags = false
	set.StringVar(&f.cniConfig, "cni-config", "", "CNI configuration list `file` that buildkitd reads; says bridge and subnet")
	set.StringVar(&f.bridge, "bridge", "", "`name` of the bridge, for a buildkitd in mode bridge (its bridgeName)")
	set.StringVar(&f.subnet, "subnet", "", "IPv4 `subnet` of the steps (buildkitd's bridgeSubnet)")
	set.StringArrayVar(&f.networks, "allow-network", nil, "`network`, as 10.20.0.0/16, that steps may reach although it is not public; may be given several times")
	set.StringArrayVar(&f.denied, "deny-network", nil, "`network` that steps may not reach although it is public; may be given several times")
	set.StringArrayVar(&f.servers, "dns", nil, "`address` of a name server that steps ask ([dns] of buildkitd); may be given several times (default: the forwarder)")
	set.BoolVar(&f.check, "check", false, "only say whether the network is set up, by the exit code")
	return cmd
}

func (f flags) config() (Config, error) {
	cfg := Config{Bridge: f.bridge}
	var err error
	switch {
	case f.cniConfig != "" && (f.bridge != "" || f.subnet != ""), f.cniConfig == "" && (f.bridge == "" || f.subnet == ""):
		return cfg, fault.New(fault.InvalidArgument, "", "which bridge and subnet steps have is not clear",
			"give --cni-config, or --bridge and --subnet")
	case f.cniConfig != "":
		cfg.Bridge, cfg.Subnet, err = ReadCNI(f.cniConfig)
	default:
		cfg.Subnet, err = netip.ParsePrefix(f.subnet)
	}
	if err != nil {
		return cfg, err
	}
	cfg.Subnet = cfg.Subnet.Masked()
	if cfg.Allow, err = ParseAllowed(f.networks); err != nil {
		return cfg, err
	}
	if cfg.Deny, err = ParseAllowed(f.denied); err != nil {
		return cfg, err
	}
	cfg.DNS, err = ParseServers(f.servers)
	return cfg, err
}

// serve sets the network up, says so to systemd, and runs it until ctx ends.
func serve(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := checkFree(cfg); err != nil {
		return err
	}
	network, err := Setup(ctx, cfg, log)
	if err != nil {
		return err
	}
	log.InfoContext(ctx, "steps have a network of their own", "bridge", cfg.Bridge, "subnet", cfg.Subnet.String(), "gateway", cfg.Gateway().String())
	if err := notifyReady(ctx); err != nil {
		log.WarnContext(ctx, "cannot tell systemd that the network is set up", "error", err)
	}
	return errors.Join(network.Run(ctx), network.Close())
}

// checkFree refuses a subnet that this host has other routes to: it would lose them.
func checkFree(cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	taken, err := routes(cfg.Bridge)
	if err != nil {
		return explain(err, "cannot list this host's routes")
	}
	for _, network := range taken {
		if network.Overlaps(cfg.Subnet) {
			return fault.Invalid("subnet", cfg.Subnet.String(), fmt.Sprintf("the subnet of the steps, %s, overlaps %s, which this host has a route to", cfg.Subnet, network),
				"choose another subnet in cni.conflist, and its first address for [dns] in buildkitd.toml")
		}
	}
	return nil
}

// check reports, as an error, that the network is not set up.
func check(cfg Config) error {
	whole, err := cfg.rulesInForce()
	if err != nil || !whole {
		return fault.Wrap(err, fault.FailedPrecondition, "", "the packet filter of the bridge "+cfg.Bridge+" is not installed", "run kiln step-network")
	}
	return nil
}

// notifyReady tells systemd (Type=notify) that steps may start.
func notifyReady(ctx context.Context) error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unixgram", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("READY=1"))
	return err
}
