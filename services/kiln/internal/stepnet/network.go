// Package stepnet gives the RUN steps of builds a network of their own: a bridge on
// this host with a private subnet, NAT to the internet, and a DNS forwarder.
// A packet filter refuses all that steps send to this host and to private networks
// unless the configuration allows it. BuildKit connects the steps, by CNI plugins.
package stepnet

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// guardEvery is how soon rules that somebody has removed (`nft flush ruleset`) are
// there again.
const guardEvery = time.Second

// Network is a network of steps that is set up.
type Network struct {
	cfg Config
	dns *forwarder // nil: steps ask other servers
	log *slog.Logger
}

// Setup makes the bridge, installs the packet filter, and opens the ports of the DNS
// forwarder. It replaces what an earlier process left. The caller calls Run for as
// long as steps run, and Close after the last one.
func Setup(ctx context.Context, cfg Config, log *slog.Logger) (*Network, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	// The rules come first: no step is connected before they hold.
	if err := cfg.installRules(); err != nil {
		return nil, explain(err, "cannot install the packet filter that keeps steps from this host")
	}
	if err := cfg.ensureBridge(); err != nil {
		return nil, errors.Join(explain(err, "cannot make the bridge "+cfg.Bridge+" of the steps' network"), cfg.removeRules())
	}
	n := &Network{cfg: cfg, log: log}
	if len(cfg.DNS) == 0 {
		var err error
		if n.dns, err = listenDNS(ctx, cfg.Gateway(), cfg.Subnet, hostResolvers("/etc/resolv.conf")); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	return n, nil
}

// explain says what to do about an error of the kernel.
func explain(err error, message string) error {
	remedy := "see the cause; --step-network host runs the steps in this host's network instead, where they reach all that this host reaches"
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		remedy = "run it as root with CAP_NET_ADMIN; without it only --step-network host is left, where steps reach all that this host reaches"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAFNOSUPPORT):
		remedy = "load the kernel modules nf_tables, nft_nat and bridge; without them only --step-network host is left, " +
			"where steps reach all that this host reaches"
	}
	return fault.Wrap(err, fault.FailedPrecondition, "", message, remedy)
}

// Run answers DNS, keeps the steps apart from one another, and restores the rules
// when somebody removes them, until ctx ends.
func (n *Network) Run(ctx context.Context) error {
	tasks := []lifecycle.Task{
		{Name: "rules of the steps' network", Run: n.guardRules},
		{Name: "ports of the steps' network", Run: n.isolatePorts},
	}
	if n.dns != nil {
		tasks = append(tasks, lifecycle.Task{Name: "DNS of steps", Run: n.dns.run})
	}
	return lifecycle.Run(ctx, tasks...)
}

// guardRules installs the rules again when they are no longer as they were installed.
// While they cannot be installed, the bridge is down: steps reach nothing.
func (n *Network) guardRules(ctx context.Context) error {
	ticker := time.NewTicker(guardEvery)
	defer ticker.Stop()
	for shut := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		whole, err := n.cfg.rulesInForce()
		if err == nil && whole && !shut {
			continue
		}
		if err := n.cfg.installRules(); err != nil {
			shut = true
			n.log.ErrorContext(ctx, "the packet filter of the steps' network was removed or changed, and cannot be installed again: steps get no network",
				"table", n.cfg.table(), "error", errors.Join(err, n.cfg.setBridge(false)))
			continue
		}
		if shut {
			if err := n.cfg.setBridge(true); err != nil {
				n.log.ErrorContext(ctx, "the bridge of the steps' network cannot be set up again", "bridge", n.cfg.Bridge, "error", err)
				continue
			}
			shut = false
		}
		n.log.WarnContext(ctx, "the packet filter of the steps' network was removed or changed; installed it again", "table", n.cfg.table())
	}
}

// Close closes the DNS forwarder, and removes the bridge and the rules. They stay
// while a network namespace of a step is connected: a step is never without the
// rules. The next Setup replaces them.
func (n *Network) Close() error {
	var err error
	if n.dns != nil {
		err = n.dns.close()
	}
	removed, bridgeErr := n.cfg.removeBridge()
	err = errors.Join(err, bridgeErr)
	if removed {
		err = errors.Join(err, n.cfg.removeRules())
	}
	return err
}
