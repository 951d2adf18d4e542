package gateway

import (
	"context"

	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
)

// Calls that name no build and no session.

// plain passes a call on that is the same for all callers.
func (g *Gateway) plain(c *call) error {
	request, err := c.frame()
	if err != nil {
		return err
	}
	up, err := g.current(c.Context())
	if err != nil {
		return err
	}
	return up.unary(c.Context(), c, request)
}

// stream is plain for a call with many responses.
func (g *Gateway) stream(c *call) error {
	request, err := c.frame()
	if err != nil {
		return err
	}
	up, err := g.current(c.Context())
	if err != nil {
		return err
	}
	return up.answers(c.Context(), c, request)
}

// duplex is plain for a call with many requests and responses.
func (g *Gateway) duplex(c *call) error {
	up, err := g.current(c.Context())
	if err != nil {
		return err
	}
	return up.both(c.Context(), c)
}

// administrative serves a call about a whole daemon, and so about the builds of all
// tenants, to callers whose rules say so, and to all where there are no rules.
func administrative(serve method) method {
	return func(g *Gateway, c *call) error {
		if !administers(c.Context()) {
			return fault.New(fault.PermissionDenied, "DENIED", c.method+" is about the builds of all callers of the daemon",
				"ask the operator for a rule with daemon_admin")
		}
		if err := c.audit(); err != nil {
			return err
		}
		return serve(g, c)
	}
}

// administers reports whether a caller has the rights of a daemon's administrator.
func administers(ctx context.Context) bool {
	return auth.GrantOf(ctx).Check(auth.Use{DaemonAdmin: true}) == nil
}

// spans passes a client's own spans on to a daemon that collects them. A daemon that
// collects none refuses them, which is no failure of the client.
func (g *Gateway) spans(c *call) error {
	request, err := c.frame()
	if err != nil {
		return err
	}
	up, err := g.current(c.Context())
	if err == nil {
		response, failed := up.exchange(c.Context(), c, request)
		response.Data.Free()
		err = failed
	}
	if err != nil {
		g.log.DebugContext(c.Context(), "the daemon does not collect a client's spans", "error", err)
	}
	return c.SendMsg(&tracepb.ExportTraceServiceResponse{})
}
