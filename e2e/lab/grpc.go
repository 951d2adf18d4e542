package lab

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// maxMessage is BuildKit's bound on a message, in bytes.
const maxMessage = 16 << 20

// Dial opens a connection without TLS to "host:port" or "unix:///path" that
// never repeats a call by itself, so that a test sees each error as it came.
func Dial(target string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	opts = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	}, opts...)
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return conn, nil
}

// WaitServing waits until the health service at target says SERVING, or until p
// ends, which is an error with the end of its log. p may be nil.
func WaitServing(ctx context.Context, p *Process, target string) error {
	return waitHealth(ctx, p, target, func(s grpc_health_v1.HealthCheckResponse_ServingStatus) bool {
		return s == grpc_health_v1.HealthCheckResponse_SERVING
	})
}

func waitHealth(ctx context.Context, p *Process, target string,
	good func(grpc_health_v1.HealthCheckResponse_ServingStatus) bool,
) error {
	name := target
	if p != nil {
		name = p.Name
	}
	return poll(ctx, p, "waiting for "+name, func(ctx context.Context) error {
		// A connection of its own each time: an old one would wait in back-off.
		conn, err := Dial(target)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			return fmt.Errorf("lab: health of %s: %w", name, err)
		}
		if !good(resp.GetStatus()) {
			return fmt.Errorf("lab: %s is %s", name, resp.GetStatus())
		}
		return nil
	})
}
