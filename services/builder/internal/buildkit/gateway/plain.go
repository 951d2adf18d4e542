package gateway

import (
	"context"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
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
// collects none refuses them, which is no failure of the client, so the client, which
// sends them last, does not wait for the daemon.
func (g *Gateway) spans(c *call) error {
	request, err := c.frame()
	if err != nil {
		return err
	}
	if size := int64(request.Data.Len()); g.spansUnderWay.TryAcquire(size) {
		lifecycle.Go(context.WithoutCancel(c.Context()), func(ctx context.Context) {
			defer g.spansUnderWay.Release(size)
			g.passSpans(ctx, request)
		})
	} else { // the daemon is slow: spans are the least of what it has to do
		request.Data.Free()
	}
	return c.SendMsg(&tracepb.ExportTraceServiceResponse{})
}

const (
	// maxSpansUnderWay bounds the spans that daemons have not answered, in bytes.
	maxSpansUnderWay = 32 << 20
	spansWithin      = 10 * time.Second
)

func (g *Gateway) passSpans(ctx context.Context, request *rawcodec.Frame) {
	ctx, cancel := context.WithTimeout(ctx, spansWithin)
	defer cancel()
	up, err := g.current(ctx)
	if err == nil {
		var response rawcodec.Frame
		err = up.Conn().Invoke(outgoing(ctx), traceMethods+"Export", request, &response, callOptions()...)
		response.Data.Free()
	}
	if err != nil {
		g.log.DebugContext(ctx, "the daemon does not collect a client's spans", "error", err)
	}
}
