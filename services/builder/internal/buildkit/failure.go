package buildkit

import (
	"bytes"
	"errors"
	"strings"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// maxMessage bounds the message of a failure, which BuildKit fills with whole
// command lines; maxSnippetLines bounds the snippet.
const (
	maxMessage      = 2048
	maxSnippetLines = 20
)

// FailureOf says why a solve failed, from the typed details that BuildKit sends
// with its error. progress may be nil.
func FailureOf(err error, progress *Progress) *build.Failure {
	f := &build.Failure{Location: location(err), Details: details(err)}
	addStep(f, err, progress)
	if own, ok := errors.AsType[*fault.Error](err); ok {
		f.Kind, f.Reason, f.Message, f.Remedy, f.Class = own.Kind, own.Reason, own.Error(), own.Remedy, classOf(own)
		return f
	}
	f.Message = message(err)
	classify(f, err)
	return f
}

// message is what BuildKit says, without the words that every failure begins with.
func message(err error) string {
	text := err.Error()
	for _, prefix := range []string{"failed to solve: ", "rpc error: code = Unknown desc = ", "failed to solve: "} {
		text = strings.TrimPrefix(text, prefix)
	}
	if len(text) > maxMessage {
		text = text[:maxMessage] + "…"
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// location is the innermost place that BuildKit names.
func location(err error) *build.Location {
	sources := errdefs.Sources(err)
	for i := len(sources) - 1; i >= 0; i-- {
		source := sources[i]
		if source.Info == nil || len(source.Ranges) == 0 || source.Ranges[0].GetStart() == nil {
			continue
		}
		at := &build.Location{File: source.Info.Filename, StartLine: int(source.Ranges[0].Start.Line)}
		for _, r := range source.Ranges {
			at.StartLine = min(at.StartLine, int(r.GetStart().GetLine()))
			at.EndLine = max(at.EndLine, int(r.GetStart().GetLine()), int(r.GetEnd().GetLine()))
		}
		var snippet bytes.Buffer
		if source.Print(&snippet) == nil {
			at.Snippet = trimSnippet(snippet.String())
		}
		return at
	}
	return nil
}

// trimSnippet keeps the numbered lines of BuildKit's rendering, and not too many.
func trimSnippet(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, " | ") && len(lines) < maxSnippetLines {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
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
		f.Step, f.LogTail = s.name, s.lastLines()
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
