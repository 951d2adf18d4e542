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

// Settle waits, no longer than a time, until the client has begun HTTP/2 and has read all that was
// sent to it. A client of BuildKit that closes its session with something left to read
// takes other bytes for HTTP/2, says that its peer broke it, and lingers for a second
// (session/grpchijack, Close).
func (c *Client) Settle(within time.Duration) {
	if c.begins(within) {
		c.answers(within)
	}
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
