package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// A syntax error names the line of the Dockerfile and shows it.
func TestDockerfileSyntaxError(t *testing.T) {
	s := sharedStack(t)
	r, failure := s.fail(t, inline(map[string]string{"Dockerfile": "FROM scratch\n\nCOPPY a b\n"}))
	if failure.GetReason() != errorsv1.Reason_REASON_DOCKERFILE_INVALID {
		t.Errorf("reason %s", failure.GetReason())
	}
	at := failure.GetLocation()
	if at.GetFile() != "Dockerfile" || at.GetStartLine() != 3 || at.GetEndLine() != 3 {
		t.Errorf("location %v", at)
	}
	if !marked(at.GetSnippet(), "COPPY a b") {
		t.Errorf("snippet:\n%s", at.GetSnippet())
	}
	if r.outcome.GetError().GetCode() != int32(codes.InvalidArgument) || !strings.Contains(r.outcome.GetError().GetMessage(), "COPPY") {
		t.Errorf("error %v", r.outcome.GetError())
	}
	hasRemedy(t, r)
}

// A RUN that fails names its line, its exit code and what it wrote last.
func TestFailingRun(t *testing.T) {
	s := sharedStack(t)
	r, failure := s.fail(t, dockerfile("FROM "+s.base+`
RUN true
RUN for i in $(seq 30); do echo "line $i"; done; \
    echo "it is broken"; \
    exit 42
`))
	if failure.GetReason() != errorsv1.Reason_REASON_STEP_FAILED || r.outcome.GetError().GetCode() != int32(codes.FailedPrecondition) {
		t.Errorf("reason %s, code %d", failure.GetReason(), r.outcome.GetError().GetCode())
	}
	if failure.ExitCode == nil || failure.GetExitCode() != 42 {
		t.Errorf("exit code %v", failure.ExitCode)
	}
	if at := failure.GetLocation(); at.GetStartLine() != 3 || at.GetEndLine() != 5 || !marked(at.GetSnippet(), "RUN for i in") {
		t.Errorf("location %v", at)
	}
	tail := failure.GetLogTail()
	if len(tail) != 20 || tail[19] != "it is broken" || tail[18] != "line 30" {
		t.Errorf("log tail: %q", tail)
	}
	if !strings.Contains(failure.GetStep(), "RUN for i in") || !strings.HasPrefix(failure.GetStepDigest(), "sha256:") {
		t.Errorf("step %q, %q", failure.GetStep(), failure.GetStepDigest())
	}
	if r.outcome.GetSteps().GetFailed() == 0 {
		t.Errorf("steps: %v", r.outcome.GetSteps())
	}
	hasRemedy(t, r)
}

// A base image that does not exist is named.
func TestUnknownBaseImage(t *testing.T) {
	s := sharedStack(t)
	ref := s.Registry.Addr + "/no/such/image:7"
	r, failure := s.fail(t, dockerfile("FROM "+ref+"\nRUN true\n"))
	if failure.GetReason() != errorsv1.Reason_REASON_SOURCE_NOT_FOUND || r.outcome.GetError().GetCode() != int32(codes.NotFound) {
		t.Errorf("reason %s, code %d: %s", failure.GetReason(), r.outcome.GetError().GetCode(), r.outcome.GetError().GetMessage())
	}
	if failure.GetReference() != ref {
		t.Errorf("reference %q, want %q", failure.GetReference(), ref)
	}
	if at := failure.GetLocation(); at.GetStartLine() != 1 {
		t.Errorf("location %v", at)
	}
	hasRemedy(t, r)
}

// A COPY of what is not there names it.
func TestMissingFile(t *testing.T) {
	s := sharedStack(t)
	r, failure := s.fail(t, dockerfile("FROM scratch\nCOPY no/such.txt /\n"))
	if failure.GetReason() != errorsv1.Reason_REASON_SOURCE_NOT_FOUND || !strings.Contains(failure.GetReference(), "no/such.txt") {
		t.Errorf("%v", failure)
	}
	if failure.GetLocation().GetStartLine() != 2 {
		t.Errorf("location %v", failure.GetLocation())
	}
	hasRemedy(t, r)
}

// A stage that the Dockerfile does not have is named.
func TestUnknownTarget(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM scratch AS real\nCOPY <<EOF /x\nEOF\n")
	spec.Target = "imaginary"
	r, failure := s.fail(t, spec)
	if failure.GetReason() != errorsv1.Reason_REASON_DOCKERFILE_INVALID || !strings.Contains(r.outcome.GetError().GetMessage(), "imaginary") {
		t.Errorf("%v", r.outcome.GetError())
	}
	hasRemedy(t, r)
}

// A directory outside the allowed roots is refused, however it is spelled, and so
// is what a symbolic link in the context leads to.
func TestDirectoriesOutsideTheRootsAreRefused(t *testing.T) {
	s := sharedStack(t)
	outside := t.TempDir()
	labtest.Write(t, outside, map[string]string{"Dockerfile": "FROM scratch\nCOPY <<EOF /x\nEOF\n", "secret": "secret"})
	link := filepath.Join(s.src, "link-out")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("/..", strings.Count(s.src, "/"))
	for name, path := range map[string]string{
		"plain":                 outside,
		"the root's parent":     filepath.Dir(s.src),
		"root's name as prefix": s.src + "-sibling",
		"by ..":                 s.src + up + outside,
		"by a symbolic link":    link,
		"the file system":       "/",
		"missing":               "/no/such/directory",
	} {
		t.Run(name, func(t *testing.T) {
			r := s.build(t, directory(path))
			refused(t, r.err, codes.PermissionDenied, "DIRECTORY_NOT_ALLOWED", "")
			if !strings.Contains(r.err.Error(), filepath.Base(path)) {
				t.Errorf("the directory is not named: %v", r.err)
			}
		})
	}

	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nCOPY . /app\nRUN cat /app/out 2>&1; ls -l /app\n"})
	if err := os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	r := s.build(t, directory(dir))
	if r.err == nil && strings.Contains(r.log(), "\nsecret") {
		t.Errorf("a link in the context led out of the root:\n%s", r.log())
	}

	inside := s.dir(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY <<EOF /x\nEOF\n"})
	s.succeed(t, directory(inside+"/../"+filepath.Base(inside)))
}

// marked reports whether a line with text is marked in a snippet.
func marked(snippet, text string) bool {
	for line := range strings.Lines(snippet) {
		if strings.Contains(line, ">>>") && strings.Contains(line, text) {
			return true
		}
	}
	return false
}

// hasRemedy checks what every failure of a build has: an ErrorInfo with the same
// reason, and what to do.
func hasRemedy(t *testing.T, r result) {
	t.Helper()
	info := detail[*errdetails.ErrorInfo](r.outcome.GetError())
	failure := detail[*errorsv1.BuildFailure](r.outcome.GetError())
	if info.GetDomain() != "kiln.build" || "REASON_"+info.GetReason() != failure.GetReason().String() || info.GetMetadata()["remedy"] == "" {
		t.Errorf("ErrorInfo %v, reason %s", info, failure.GetReason())
	}
	for _, e := range r.events {
		if e.GetOutcome() != nil && e.GetOutcome().GetState() == builderv1.BuildState_BUILD_STATE_SUCCEEDED {
			t.Error("it succeeded")
		}
	}
}
