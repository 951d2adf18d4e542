package e2e_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// throughGateway solves with BuildKit's client through the gateway, expects a failure,
// and returns what the builder's record says of it.
func (s *stack) throughGateway(t *testing.T, def *llb.Definition, opt client.SolveOpt) (codes.Code, *errorsv1.BuildFailure) {
	t.Helper()
	ctx := labtest.Context(t, time.Minute)
	c := labtest.Must(client.New(ctx, "tcp://"+s.Builder.Addr))(t)
	defer func() { _ = c.Close() }()
	opt.Ref = uuid.NewString()
	if opt.Frontend == "" && def == nil {
		opt.Frontend = "dockerfile.v0"
	}
	if _, err := c.Solve(ctx, def, opt, nil); err == nil {
		t.Fatal("it built")
	}
	var rec *builderv1.BuildRecord
	labtest.Eventually(t, 10*time.Second, "the end of "+opt.Ref, func() bool {
		res, err := s.api.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: opt.Ref})
		rec = res.GetBuild()
		return err == nil && rec.GetOutcome() != nil
	})
	return codes.Code(rec.GetOutcome().GetError().GetCode()), detail[*errorsv1.BuildFailure](rec.GetOutcome().GetError()) //nolint:gosec // of gRPC
}

// files are the attributes and mounts of a build of a directory.
func (s *stack) mounted(t *testing.T, files map[string]string, attrs map[string]string) client.SolveOpt {
	t.Helper()
	fs := labtest.Must(fsutil.NewFS(s.dir(t, files)))(t)
	return client.SolveOpt{FrontendAttrs: attrs, LocalMounts: map[string]fsutil.FS{"context": fs, "dockerfile": fs}}
}

// A graph whose source map has a range without an end fails as its step does, by both
// doors.
func TestFailure_SourceMapWithoutAnEnd(t *testing.T) {
	s := sharedStack(t)
	sm := llb.NewSourceMap(nil, "build.hcl", "hcl", []byte("1\n2\n3\n4\n5\n6\nseven\n8\n"))
	state := llb.Scratch().Run(llb.Args([]string{"not-exist"}), sm.Location([]*pb.Range{{Start: &pb.Position{Line: 7}}})).Root()
	graph := labtest.Must(state.Marshal(t.Context(), llb.LinuxAmd64))(t)
	_, byRPC := s.fail(t, &builderv1.BuildSpec{Definition: labtest.Must(proto.Marshal(graph.ToPB()))(t)})
	_, byGateway := s.throughGateway(t, graph, client.SolveOpt{})
	for door, f := range map[string]*errorsv1.BuildFailure{"RPC": byRPC, "gateway": byGateway} {
		if f.GetClass() != byUser || f.GetLocation().GetStartLine() != 7 || f.GetLocation().GetEndLine() != 7 ||
			!strings.Contains(f.GetLocation().GetSnippet(), ">>> seven") {
			t.Errorf("%s: %v", door, f)
		}
	}
}

// What a user got wrong is the user's, by both doors.
func TestFailure_MistakesAreTheUsers(t *testing.T) {
	s := sharedStack(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("content")) }))
	t.Cleanup(server.Close)
	const wrong = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	const (
		badDockerfile = errorsv1.Reason_REASON_DOCKERFILE_INVALID
		badField      = errorsv1.Reason_REASON_INVALID_FIELD
		badDigest     = errorsv1.Reason_REASON_DIGEST_MISMATCH
	)
	from := "FROM " + s.base + "\n"
	for name, c := range map[string]struct {
		files  map[string]string
		args   map[string]string // build arguments
		attrs  map[string]string // of the frontend, through the gateway only
		export string            // through the gateway only
		reason errorsv1.Reason
	}{
		"no stages":             {files: map[string]string{"Dockerfile": "ARG A=1\n"}, reason: badDockerfile},
		"empty Dockerfile":      {files: map[string]string{"Dockerfile": "# nothing\n"}, reason: badDockerfile},
		"expansion in --from":   {files: map[string]string{"Dockerfile": "ARG A=x\n" + from + "COPY --from=$A /a /b\n"}, reason: badDockerfile},
		"expansion in a mount":  {files: map[string]string{"Dockerfile": from + "ARG A=x\nRUN --mount=from=$A,target=/x true\n"}, reason: badDockerfile},
		"pattern in the ignore": {files: map[string]string{"Dockerfile": from + "COPY . /\n", ".dockerignore": "[\n"}, reason: badDockerfile},
		"platform of a stage":   {files: map[string]string{"Dockerfile": "FROM --platform=no/such/platform/x " + s.base + "\n"}, reason: badDockerfile},
		"platform":              {files: map[string]string{"Dockerfile": from}, attrs: map[string]string{"platform": "li nux"}, reason: badField},
		"SOURCE_DATE_EPOCH":     {files: map[string]string{"Dockerfile": from + "RUN true\n"}, args: map[string]string{"SOURCE_DATE_EPOCH": "yesterday"}, reason: badField},
		"lint violation": {files: map[string]string{"Dockerfile": "#check=error=true\n" + strings.ToLower(from) + "RUN true\n"},
			reason: badDockerfile},
		"checksum of ADD":  {files: map[string]string{"Dockerfile": from + "ADD --checksum=" + wrong + " " + server.URL + "/f /f\n"}, reason: badDigest},
		"unknown exporter": {files: map[string]string{"Dockerfile": from + "RUN true\n"}, export: "imaginary", reason: badField},
		"required SSH key": {files: map[string]string{"Dockerfile": from + "RUN --mount=type=ssh,required true\n"}, reason: notFound},
		"unknown flag":     {files: map[string]string{"Dockerfile": from + "COPY --imaginary a /b\n"}, reason: badDockerfile},
		"shm-size":         {files: map[string]string{"Dockerfile": from}, attrs: map[string]string{"shm-size": "much"}, reason: badField},
		"add-hosts":        {files: map[string]string{"Dockerfile": from}, attrs: map[string]string{"add-hosts": "x=y"}, reason: badField},
		"ulimit":           {files: map[string]string{"Dockerfile": from}, attrs: map[string]string{"ulimit": "many"}, reason: badField},
	} {
		t.Run(name, func(t *testing.T) {
			attrs := map[string]string{}
			for key, value := range c.attrs {
				attrs[key] = value
			}
			for key, value := range c.args {
				attrs["build-arg:"+key] = value
			}
			opt := s.mounted(t, c.files, attrs)
			if c.export != "" {
				opt.Exports = []client.ExportEntry{{Type: c.export}}
			}
			_, byGateway := s.throughGateway(t, nil, opt)
			mine(t, "gateway", byGateway, c.reason)
			if c.attrs != nil || c.export != "" {
				return // the contract refuses them before the daemon is asked
			}
			spec := directory(s.dir(t, c.files))
			spec.BuildArgs = c.args
			r := s.build(t, spec)
			if r.err != nil {
				return // refused before the daemon is asked
			}
			mine(t, "RPC", detail[*errorsv1.BuildFailure](r.outcome.GetError()), c.reason)
		})
	}
}

func mine(t *testing.T, door string, f *errorsv1.BuildFailure, reason errorsv1.Reason) {
	t.Helper()
	if f.GetClass() != byUser || f.GetReason() != reason {
		t.Errorf("%s: %s, %s; want %s of the user: %v", door, f.GetReason(), f.GetClass(), reason, f)
	}
}
