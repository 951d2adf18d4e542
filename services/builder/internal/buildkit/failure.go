package buildkit

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"strings"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"

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
	var own *fault.Error
	if errors.As(err, &own) {
		return &build.Failure{Kind: own.Kind, Reason: own.Reason, Message: own.Error(), Remedy: own.Remedy}
	}
	f := &build.Failure{Message: message(err), Location: location(err)}
	addStep(f, err, progress)
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

var (
	imageNotResolved = regexp.MustCompile(`failed to resolve source metadata for ([^\s:]+(?::\d+)?[^\s]*): `)
	fileNotFound     = regexp.MustCompile(`failed to (?:calculate checksum of ref|compute cache key)[^"]*"([^"]+)": not found`)
	gitNotRead       = regexp.MustCompile(`failed to (?:fetch remote|load cache key)[: ]+(\S+)`)
	noDockerfile     = regexp.MustCompile(`failed to read dockerfile: open (\S+): no such file`)
	noTarget         = regexp.MustCompile(`target stage "?([^"\s]+)"? could not be found`)
)

// classify gives the failure its kind, reason and remedy. The order matters:
// what BuildKit types comes before what it only words.
func classify(f *build.Failure, err error) {
	code := grpcerrors.Code(err)
	text := err.Error()
	set := func(kind fault.Kind, reason, remedy string) { f.Kind, f.Reason, f.Remedy = kind, reason, remedy }
	match := func(re *regexp.Regexp) bool {
		m := re.FindStringSubmatch(text)
		if m != nil {
			f.Reference = strings.TrimSuffix(m[1], ":")
		}
		return m != nil
	}
	switch {
	case errors.Is(err, context.Canceled) || code == codes.Canceled:
		set(fault.Canceled, "CANCELLED", "build again")
	case errors.Is(err, context.DeadlineExceeded) || code == codes.DeadlineExceeded:
		set(fault.DeadlineExceeded, "TIMED_OUT", "give the build more time")
	case f.ExitCode != nil:
		set(fault.FailedPrecondition, "STEP_FAILED", "read the last lines of the step's log and mend the command at that line of the Dockerfile")
	case match(imageNotResolved):
		set(fault.NotFound, "SOURCE_NOT_FOUND", "check the name and tag of the image, that its registry can be reached from the daemon, and that it may be pulled")
	case match(noDockerfile):
		set(fault.NotFound, "SOURCE_NOT_FOUND", "put a Dockerfile there, name another with dockerfile.path, or send its text with dockerfile.inline")
	case match(fileNotFound):
		set(fault.NotFound, "SOURCE_NOT_FOUND", "check the path: it is relative to the context, and .dockerignore may leave it out")
	case match(noTarget):
		set(fault.InvalidArgument, "DOCKERFILE_INVALID", "name a stage of the Dockerfile with target")
	case isExport(f.Step):
		set(kindOf(code), "EXPORT_FAILED", "check that the registry can be reached from the daemon, has room, and lets it push")
	case strings.Contains(text, "path escapes from parent"):
		f.Message = "a symbolic link of the context is absolute or leads out of it: " + f.Message
		set(fault.FailedPrecondition, "SOURCE_NOT_FOUND", "make the link relative and lead inside the context, or build the directory with kiln build")
	case strings.HasPrefix(f.Step, "[internal] load git") || match(gitNotRead):
		set(fault.NotFound, "SOURCE_NOT_FOUND", "check the URL and ref of the repository, and that the daemon can reach it")
	case strings.Contains(text, "dockerfile parse error") || f.Location != nil:
		set(fault.InvalidArgument, "DOCKERFILE_INVALID", "mend the Dockerfile at the line that is named")
	case code == codes.Unavailable:
		f.Message = "the connection to buildkitd broke: " + innermost(f.Message)
		set(fault.Unavailable, "DAEMON_UNAVAILABLE", "check that buildkitd runs, and build again")
	case code == codes.ResourceExhausted || strings.Contains(text, "no space left on device"):
		set(fault.ResourceExhausted, "LIMIT_REACHED", "free disk on the daemon's host, or lower the cache policy, and build again")
	default:
		set(kindOf(code), "INTERNAL", "read the message; it is buildkitd's own")
	}
}

// innermost is the last of the causes that gRPC strings together.
func innermost(text string) string {
	if at := strings.LastIndex(text, "desc = "); at >= 0 {
		text = text[at+len("desc = "):]
	}
	return strings.Trim(text, `"`)
}

func kindOf(code codes.Code) fault.Kind {
	switch code {
	case codes.InvalidArgument:
		return fault.InvalidArgument
	case codes.NotFound:
		return fault.NotFound
	case codes.PermissionDenied:
		return fault.PermissionDenied
	case codes.Unauthenticated:
		return fault.Unauthenticated
	case codes.FailedPrecondition:
		return fault.FailedPrecondition
	case codes.Unavailable:
		return fault.Unavailable
	default:
		return fault.Internal
	}
}
