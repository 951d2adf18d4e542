package relay

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// maxMissed is how many health checks in a row a client may miss.
const maxMissed = 2

// watch ends the session when the client does not begin HTTP/2, breaks it, or no
// longer answers.
func (c *Client) watch(opts Options) {
	if !c.begins(opts.Handshake) {
		c.end(fault.New(fault.InvalidArgument, "INVALID_FIELD", "the client does not speak HTTP/2 on its session",
			"open sessions with a BuildKit client"))
		return
	}
	ticker := time.NewTicker(opts.HealthEvery)
	defer ticker.Stop()
	for missed := 0; missed < maxMissed; {
		select {
		case <-ticker.C:
		case <-c.done:
			return
		}
		missed++
		if c.tunnel.silent() < opts.HealthEvery || c.answers(opts.HealthTimeout) {
			missed = 0
		}
	}
	c.end(fault.New(fault.Unavailable, "UNAVAILABLE", "the client no longer answers on its session", "check that the client is running, and build again"))
}

// begins waits until the HTTP/2 connection stands.
func (c *Client) begins(within time.Duration) bool {
	ctx, cancel := context.WithTimeout(c.ctx, within)
	defer cancel()
	for state := c.conn.GetState(); state != connectivity.Ready; state = c.conn.GetState() {
		if state == connectivity.TransientFailure || !c.conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
	return true
}

// answers asks the client for its health, as daemons do. Whatever it answers, it is
// alive.
func (c *Client) answers(within time.Duration) bool {
	ctx, cancel := context.WithTimeout(c.ctx, within)
	defer cancel()
	heard := c.tunnel.heard.Load()
	_, err := grpc_health_v1.NewHealthClient(c.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(false))
	return err == nil || c.tunnel.heard.Load() != heard
}
