package rpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// access is who a server knows and what they may do.
type access struct {
	certificates *auth.Certificates // nil: plain text
	tokens       *auth.Tokens       // nil: none are taken
	policy       *auth.PolicyFile   // nil: rules are in the configuration
	authorize    auth.Authorizer
}

// newAccess reads the files that a configuration names.
func newAccess(cfg *configv1.ServerConfig, own auth.Authorizer, log *slog.Logger) (a *access, err error) {
	a = &access{authorize: own}
	if len(cfg.GetAccess()) > 0 && cfg.GetPolicyFile() != "" {
		return nil, fault.Invalid("server.policy_file", cfg.GetPolicyFile(), "there are rules in server.access, too", "keep one of the two")
	}
	if cfg.GetTls() != nil {
		if a.certificates, err = auth.NewCertificates(cfg.GetTls(), cfg.GetTokensFile() != "", log); err != nil {
			return nil, fault.Wrap(err, fault.InvalidArgument, "INVALID_FIELD", "the server's certificates do not load", "correct the files of server.tls")
		}
	}
	if file := cfg.GetTokensFile(); file != "" {
		if a.tokens, err = auth.NewTokens(file, log); err != nil {
			return nil, fault.Wrap(err, fault.InvalidArgument, "INVALID_FIELD", "the tokens do not load", "correct the file of server.tokens_file")
		}
	}
	if file := cfg.GetPolicyFile(); file != "" {
		if a.policy, err = auth.NewPolicyFile(file, log); err != nil {
			return nil, fault.Wrap(err, fault.InvalidArgument, "INVALID_FIELD", "the rules do not load", "correct the file of server.policy_file")
		}
	}
	switch {
	case own != nil:
	case a.policy != nil:
		a.authorize = a.policy.Authorize
	default:
		a.authorize = auth.FromRules(cfg.GetAccess(), cfg.GetInsecure() || IsLocal(cfg.GetListen()))
	}
	return a, nil
}

// tls is the configuration of a listener; nil: plain text.
func (a *access) tls() *tls.Config {
	if a.certificates == nil {
		return nil
	}
	return a.certificates.TLS()
}

// credentials are the credentials of the gRPC server; nil: plain text.
func (a *access) credentials(tel *telemetry.Telemetry) (credentials.TransportCredentials, error) {
	if a.certificates == nil {
		return nil, nil
	}
	return newHandshakes(a.tls(), tel.Logger, tel.Meter)
}

// identify is who calls: by a certificate or, without one, by a token.
func (a *access) identify(ctx context.Context) (auth.Identity, error) {
	id := auth.FromPeer(ctx)
	if a.tokens == nil || !id.Anonymous() {
		return id, nil
	}
	token := auth.Bearer(metadata.ValueFromIncomingContext(ctx, "authorization"))
	if token == "" {
		return id, nil
	}
	if !SecureTransport(ctx) {
		return id, fault.New(fault.Unauthenticated, "UNAUTHENTICATED", "a token came in plain text over the network", "connect by TLS, and take that token for known to others")
	}
	return a.tokens.Identify(token)
}

// measure makes the gauges of what is read again while it serves: whoever watches them has
// the files looked at.
func (a *access) measure(provider metric.MeterProvider) error {
	meter := provider.Meter("github.com/kilnbuild/kiln/pkg/rpc")
	stale, err := meter.Int64ObservableGauge("kiln.security.stale", metric.WithUnit("{file}"),
		metric.WithDescription("1 while files of certificates, tokens or rules have changed and do not load, so that the old ones are in use"))
	if err != nil {
		return fmt.Errorf("making a metric: %w", err)
	}
	end, err := meter.Float64ObservableGauge("kiln.security.certificate.end", metric.WithUnit("s"),
		metric.WithDescription("When the server's certificate ends, in seconds since 1970"))
	if err != nil {
		return fmt.Errorf("making a metric: %w", err)
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		observe := func(what string, is bool) {
			value := int64(0)
			if is {
				value = 1
			}
			o.ObserveInt64(stale, value, metric.WithAttributes(attribute.String("what", what)))
		}
		if a.certificates != nil {
			at, is := a.certificates.Status()
			o.ObserveFloat64(end, float64(at.Unix()))
			observe("certificates", is)
		}
		if a.tokens != nil {
			observe("tokens", a.tokens.Stale())
		}
		if a.policy != nil {
			observe("rules", a.policy.Stale())
		}
		return nil
	}, stale, end)
	if err != nil {
		return fmt.Errorf("making a metric: %w", err)
	}
	return nil
}
