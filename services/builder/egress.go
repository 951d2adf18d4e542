package builder

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
)

const egressOff = "off"

// newGuard makes the guard that the configuration describes.
func newGuard(cfg *configv1.SourcesConfig, tel *telemetry.Telemetry) (*guard.Guard, error) {
	policy := guard.Policy{Schemes: cfg.GetSchemes(), AllowedHosts: cfg.GetAllowedHosts(), DeniedHosts: cfg.GetDeniedHosts()}
	for i, text := range cfg.GetNetworks() {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fault.Invalid(fmt.Sprintf("policy.sources.networks[%d]", i), text, fmt.Sprintf("%q is not a network", text), "write it like 10.20.0.0/16 or fd00:1::/64")
		}
		policy.Networks = append(policy.Networks, network)
	}
	requests, err := tel.Meter.Meter("github.com/kilnbuild/kiln/services/builder").Int64Counter("kiln.egress.requests",
		metric.WithDescription("Requests to the egress proxy, by outcome"), metric.WithUnit("{request}"))
	if err != nil {
		return nil, err
	}
	g := guard.New(policy, tel.Logger)
	g.Observe = func(ctx context.Context, outcome string) {
		requests.Add(ctx, 1, metric.WithAttributes(attribute.String("outcome", outcome)))
	}
	return g, nil
}

// listenEgress binds the address of the egress proxy, nil when it is off. Whoever
// reaches it may use it: it asks nobody who they are.
func listenEgress(ctx context.Context, cfg *configv1.BuilderConfig) (net.Listener, error) {
	const field = "egress.listen"
	address := cfg.GetEgress().GetListen()
	if address == egressOff {
		return nil, nil //nolint:nilnil // There is none, and nothing is wrong.
	}
	if !rpc.IsLocal(address) && !cfg.GetServer().GetInsecure() {
		return nil, fault.Invalid(field, address, address+" can be reached by others, and the proxy asks nobody who they are",
			"listen on loopback; server.insecure: true allows any address, for closed networks only")
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		f := fault.Wrap(err, fault.FailedPrecondition, "", "cannot listen on "+address, "choose another address with --set "+field+"=…")
		f.Field = field
		return nil, f
	}
	return listener, nil
}
