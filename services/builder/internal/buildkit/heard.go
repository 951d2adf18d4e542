package buildkit

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/stats"
)

// heard is when a daemon sent something last. A daemon that solves a bake of a thousand
// targets on a few processors may take longer for a new call than a check may take, while
// it goes on answering those that it has.
type heard struct {
	began time.Time
	last  atomic.Int64 // since began, in nanoseconds
}

var _ stats.Handler = (*heard)(nil)

func newHeard() *heard { return &heard{began: time.Now()} }

// since reports whether something has come since a time.
func (h *heard) since(t time.Time) bool { return h.last.Load() > int64(t.Sub(h.began)) }

// HandleRPC implements stats.Handler.
func (h *heard) HandleRPC(_ context.Context, s stats.RPCStats) {
	switch s.(type) {
	case *stats.InHeader, *stats.InPayload, *stats.InTrailer:
		h.last.Store(int64(time.Since(h.began)))
	}
}

// TagRPC implements stats.Handler.
func (*heard) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// TagConn implements stats.Handler.
func (*heard) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (*heard) HandleConn(context.Context, stats.ConnStats) {}
