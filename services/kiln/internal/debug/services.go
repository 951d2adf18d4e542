package debug

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
)

// serviceChecks ask each of Kiln's services for its health.
func (o *options) serviceChecks(ctx context.Context) (all []Finding) {
	for _, service := range o.parts() {
		f := Finding{State: OK, Message: fmt.Sprintf("the %s at %s serves", service.name, service.conn.Address)}
		if err := healthOf(ctx, service.conn); err != nil {
			f.State, f.Message = Fail, fmt.Sprintf("the %s at %s is not well", service.name, service.conn.Address)
			f.Evidence = []string{err.Error()}
			f.Remedy = fmt.Sprintf("sudo systemctl restart %[1]s, and see journalctl -u %[1]s; on one machine, kiln up", service.unit)
		}
		all = append(all, f)
	}
	return all
}

func healthOf(ctx context.Context, flags *connect.Flags) error {
	conn, err := flags.Connect()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is left to lose
	res, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	switch {
	case status.Code(err) == codes.PermissionDenied || status.Code(err) == codes.Unauthenticated:
		return nil // it answers, and not to everybody
	case err != nil:
		return flags.Explain(err)
	case res.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return fmt.Errorf("its health is %s: its dependencies do not answer", res.GetStatus())
	}
	return nil
}
