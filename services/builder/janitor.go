package builder

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/metric"

	"github.com/kilnbuild/kiln/pkg/telemetry"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// dialJanitor prepares the connection to the janitor, if there is one, and what counts
// the leases that builds do without.
func (s *Service) dialJanitor(tel *telemetry.Telemetry) (janitor janitorv1.JanitorServiceClient, missed func(), err error) {
	cfg := s.cfg.GetJanitor()
	if cfg == nil {
		return nil, nil, nil
	}
	conn, err := dialPeer(cfg, tel)
	if err != nil {
		return nil, nil, fmt.Errorf("janitor: %w", err)
	}
	s.parts.Push("janitor", func(context.Context) error { return conn.Close() })
	count, err := tel.Meter.Meter("github.com/kilnbuild/kiln/services/builder").Int64Counter("kiln.build.leases.missed",
		metric.WithDescription("Leases on caches in the registry that builds went on without"), metric.WithUnit("{lease}"))
	return janitorv1.NewJanitorServiceClient(conn), func() { count.Add(context.Background(), 1) }, err
}
