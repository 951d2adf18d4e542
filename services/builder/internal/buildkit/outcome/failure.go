// Package outcome tells how a solve went: what happens in it, from BuildKit's statuses,
// and why it failed, from BuildKit's errors.
package outcome

import (
	"context"
	"errors"
	"strings"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// maxMessage bounds the message of a failure, which BuildKit fills with whole
// command lines.
const maxMessage = 2048

// errBroke stands for a panic, whose text is for the log only.
var errBroke = fault.New(fault.Internal, "INTERNAL", "the builder failed while building", "report it with the trace id of the build")

// FailureOf says why a solve failed, from the typed details that BuildKit sends
// with its error. progress may be nil. The details are data of the build's own
// client and frontend, and BuildKit's code reads them: when that panics, the panic is
// reported and the failure lacks them.
func FailureOf(ctx context.Context, err error, progress *Progress) *build.Failure {
	f := new(build.Failure)
	for _, read := range []func(){
		func() { f.Location = location(err) },
		func() { f.Details = details(err) },
		func() { addStep(f, err, progress) },
	} {
		_ = lifecycle.Protect(ctx, func(context.Context) error { read(); return nil }) // reported
	}
	if _, panicked := errors.AsType[*lifecycle.PanicError](err); panicked {
		err = errBroke
	}
	if own, ok := errors.AsType[*fault.Error](err); ok {
		f.Kind, f.Reason, f.Message, f.Remedy, f.Class = own.Kind, own.Reason, own.Error(), own.Remedy, classOf(own)
		return f
	}
	f.Message = Message(err)
	classify(f, err)
	return f
}

// Message is what BuildKit says, without the words that every failure begins with and the
// name of its code.
func Message(err error) string {
	text := err.Error()
	code := grpcerrors.Code(err).String() + ": "
	for _, prefix := range []string{"failed to solve: ", "rpc error: code = Unknown desc = ", "failed to solve: ", code} {
		text = strings.TrimPrefix(text, prefix)
	}
	if len(text) > maxMessage {
		text = text[:maxMessage] + "…"
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// addStep names the step that failed, its exit code and its last output.
func addStep(f *build.Failure, err error, progress *Progress) {
	var exit *gatewaypb.ExitError
	if errors.As(err, &exit) {
		code := int32(exit.ExitCode) //nolint:gosec // exit codes have eight bits
		f.ExitCode = &code
	}
	var vertex *errdefs.VertexError
	if errors.As(err, &vertex) {
		f.StepDigest = vertex.Digest
	}
	if progress == nil {
		return
	}
	if f.StepDigest == "" {
		for id, s := range progress.steps {
			if s.ended == build.StepFailed {
				f.StepDigest = id.String()
			}
		}
	}
	if s := progress.steps[digest.Digest(f.StepDigest)]; s != nil {
		f.Step, f.LogTail, f.LogClipped = s.name, s.tail.last(), s.tail.clipped
	}
}

// classOf says whose business an error of Kiln's own is.
func classOf(err *fault.Error) build.Class {
	switch {
	case err.Reason == "POLICY_DENIED" || err.Reason == "DIRECTORY_NOT_ALLOWED":
		return build.Policy
	case err.Kind == fault.Canceled:
		return build.ByCancel
	case err.Kind == fault.DeadlineExceeded:
		return build.ByTimeout
	case err.Kind == fault.Unavailable || err.Kind == fault.ResourceExhausted || err.Kind == fault.Internal:
		return build.Infrastructure
	default:
		return build.User
	}
}
