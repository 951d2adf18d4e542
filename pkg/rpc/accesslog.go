package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// logFailure logs a call that failed. The text of an INVALID_ARGUMENT is left
// out, since it quotes the request; the fields are named instead.
func (g *guard) logFailure(ctx context.Context, method string, id auth.Identity, start time.Time, st *status.Status, cause error) {
	level := levelOf(st.Code())
	passedOn := !ours(method)
	_, panicked := errors.AsType[*lifecycle.PanicError](cause)
	if panicked {
		passedOn = false // what broke is Kiln's own
	}
	if passedOn && st.Code() != codes.Unavailable {
		// What fails in a call that is passed on is the business of the two ends,
		// and its text may quote a user's command lines.
		level = slog.LevelDebug
	}
	if !g.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", method),
		slog.String("code", st.Code().String()),
		slog.Duration("duration", time.Since(start)),
		slog.String("identity", id.String()),
	}
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			attrs = append(attrs, slog.String("reason", d.GetReason()))
		case *errdetails.BadRequest:
			for _, violation := range d.GetFieldViolations() {
				attrs = append(attrs, slog.String("field", violation.GetField()))
			}
		}
	}
	if st.Code() != codes.InvalidArgument && (!passedOn || st.Code() == codes.Unavailable) {
		attrs = append(attrs, slog.String("error", causeText(cause)))
	}
	g.log.LogAttrs(ctx, level, "call failed", attrs...)
}

// levelOf is debug for callers who went away, error for faults of Kiln itself,
// and warn for all between.
func levelOf(code codes.Code) slog.Level {
	switch code {
	case codes.OK, codes.Canceled:
		return slog.LevelDebug
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return slog.LevelError
	default:
		return slog.LevelWarn
	}
}

// causeText is the text of a cause. The stack of a panic was logged when it was
// recovered.
func causeText(cause error) string {
	if p, ok := errors.AsType[*lifecycle.PanicError](cause); ok {
		return fmt.Sprintf("panic: %v", p.Value)
	}
	return cause.Error()
}
