package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/protocodec"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// history passes the daemon's history on: all of it to an administrator, and to
// others the events of their own builds.
func (g *Gateway) history(c *call) error {
	var req controlapi.BuildHistoryRequest
	request, err := c.receive(&req)
	if err != nil {
		return err
	}
	ctx := c.Context()
	up, err := g.current(ctx)
	if err != nil {
		return err
	}
	if administers(ctx) {
		return up.answers(ctx, c, request)
	}
	own := &ownHistory{gateway: g, call: c, up: up, known: make(map[string]bool)}
	if req.GetLimit() == 0 {
		return own.pass(ctx, &req)
	}
	// The daemon would apply the limit before the builder drops what is others'.
	limit, follows := int(req.GetLimit()), !req.GetEarlyExit()
	req.Limit, req.EarlyExit = 0, true
	if err := own.newest(ctx, &req, limit); err != nil || !follows {
		return err
	}
	req.EarlyExit, req.ActiveOnly = false, true
	return own.pass(ctx, &req)
}

// ownHistory is the daemon's history as one caller sees it.
type ownHistory struct {
	gateway *Gateway
	call    *call
	up      *upstream
	header  bool
	known   map[string]bool // whether refs are the caller's
}

// pass passes the caller's own events on as they come.
func (h *ownHistory) pass(ctx context.Context, req *controlapi.BuildHistoryRequest) error {
	return h.each(ctx, req, func(event *controlapi.BuildHistoryEvent) error { return h.call.SendMsg(event) })
}

// newest passes the caller's own builds on that are running, and the last ones that
// have ended up to a limit, newest first.
func (h *ownHistory) newest(ctx context.Context, req *controlapi.BuildHistoryRequest, limit int) error {
	var past []*controlapi.BuildHistoryEvent
	err := h.each(ctx, req, func(event *controlapi.BuildHistoryEvent) error {
		if event.GetType() == controlapi.BuildHistoryEventType_STARTED {
			return h.call.SendMsg(event)
		}
		past = append(past, event)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(past, func(a, b *controlapi.BuildHistoryEvent) int {
		return b.GetRecord().GetCreatedAt().AsTime().Compare(a.GetRecord().GetCreatedAt().AsTime())
	})
	for _, event := range past[:min(max(limit, 0), len(past))] {
		if err := h.call.SendMsg(event); err != nil {
			return err
		}
	}
	return nil
}

// each gives the caller's own events to emit.
func (h *ownHistory) each(ctx context.Context, req proto.Message, emit func(*controlapi.BuildHistoryEvent) error) error {
	stream, err := h.listen(ctx, req)
	for err == nil {
		var frame rawcodec.Frame
		if err = stream.RecvMsg(&frame); err != nil {
			break
		}
		var event controlapi.BuildHistoryEvent
		if err = protocodec.Unmarshal(frame.Data.Materialize(), &event); err != nil {
			frame.Data.Free()
			break
		}
		frame.Data.Free()
		var own bool
		if own, err = h.own(ctx, event.GetRecord().GetRef()); err == nil && own {
			h.gateway.blobs.add(h.call.holder(), event.GetRecord())
			err = emit(&event)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// listen begins to read the daemon's history, and passes on its clock.
func (h *ownHistory) listen(ctx context.Context, req proto.Message) (grpc.ClientStream, error) {
	frame, err := encoded(req)
	if err != nil {
		return nil, err
	}
	stream, err := h.up.ask(ctx, methodHistory, frame)
	if err != nil {
		return nil, err
	}
	header, err := stream.Header()
	if err == nil && header != nil && !h.header {
		h.header = true
		err = h.call.SendHeader(header)
	}
	return stream, err
}

// own reports whether the caller may see what the daemon keeps of a ref: it is the
// caller's, and not of a build by RPC with secrets, of which the daemon's record holds
// them until it is dropped. Neither ever changes.
func (h *ownHistory) own(ctx context.Context, ref string) (bool, error) {
	if own, ok := h.known[ref]; ok {
		return own, nil
	}
	own, _, err := h.gateway.mine(ctx, h.call, ref)
	if err == nil && own {
		var rec build.Record
		rec, _, err = h.gateway.record(ctx, ref)
		own = err == nil && !rec.HasSecrets
	}
	if err == nil && len(h.known) < maxKnown {
		h.known[ref] = own
	}
	return own, err
}

// maxKnown bounds how many refs one listener remembers.
const maxKnown = 10_000

// updateHistory passes on a change to what the daemon remembers of a build of the
// caller.
func (g *Gateway) updateHistory(c *call) error {
	var req controlapi.UpdateBuildHistoryRequest
	request, err := c.receive(&req)
	if err != nil {
		return err
	}
	if err := c.audit(slog.String("ref", brief(req.GetRef()))); err != nil {
		return err
	}
	ctx := c.Context()
	own, _, err := g.mine(ctx, c, req.GetRef())
	if err != nil {
		return err
	}
	if !own {
		return status.Errorf(codes.NotFound, "failed to retrieve ref %s: file does not exist", req.GetRef())
	}
	up, err := g.current(ctx)
	if err != nil {
		return err
	}
	return up.unary(ctx, c, request)
}
