package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

const buildMethod = "kiln.builder.v1.BuilderService/Build"

func grpcurl(t *testing.T, args ...string) (lab.Output, error) {
	t.Helper()
	return lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: labtest.Must(lab.Bin("grpcurl"))(t), Args: args})
}

// A stranger with grpcurl finds out what there is.
func TestGrpcurlListsAndDescribes(t *testing.T) {
	s := sharedStack(t)
	list := labtest.Must(grpcurl(t, "-plaintext", s.Builder.Addr, "list"))(t).Stdout
	for _, service := range []string{"kiln.builder.v1.BuilderService", "grpc.health.v1.Health"} {
		if !strings.Contains(list, service) {
			t.Errorf("%s is not listed:\n%s", service, list)
		}
	}
	described := labtest.Must(grpcurl(t, "-plaintext", s.Builder.Addr, "describe", "kiln.builder.v1.BuildSpec"))(t).Stdout
	if !strings.Contains(described, "build_args") {
		t.Errorf("describe: %s", described)
	}
}

// The README's call builds, pushes and says so.
func TestGrpcurlREADMECall(t *testing.T) {
	s := sharedStack(t)
	root := labtest.Must(lab.RepoRoot())(t)
	readme := string(labtest.Must(os.ReadFile(filepath.Join(root, "README.md")))(t))
	if call := "grpcurl -plaintext -d @ localhost:50051 " + buildMethod + " < examples/inline/build.json"; !strings.Contains(readme, call) {
		t.Errorf("the README does not have %q", call)
	}
	request := string(labtest.Must(os.ReadFile(filepath.Join(root, "examples", "inline", "build.json")))(t))
	request = strings.ReplaceAll(request, "localhost:5000", s.Registry.Addr)
	out := labtest.Must(grpcurl(t, "-plaintext", "-d", request, s.Builder.Addr, buildMethod))(t).Stdout

	var last struct {
		Event struct {
			Outcome struct {
				State   string
				Outputs []struct{ Digest string }
			}
		}
	}
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		if err := dec.Decode(&last); err != nil {
			t.Fatal(err)
		}
	}
	if last.Event.Outcome.State != "BUILD_STATE_SUCCEEDED" {
		t.Fatalf("outcome %+v in\n%s", last.Event.Outcome, out)
	}
	digest := labtest.Must(image.Digest(t.Context(), s.Registry.Addr+"/hello:1"))(t)
	if len(last.Event.Outcome.Outputs) != 1 || last.Event.Outcome.Outputs[0].Digest != digest {
		t.Errorf("outcome %+v, the registry serves %s", last.Event.Outcome, digest)
	}
	if got := file(t, s.Registry.Addr+"/hello:1", "", "/hello.txt"); got != "Hello from Kiln.\n" {
		t.Errorf("/hello.txt is %q", got)
	}
}

// refused checks an RPC error as the contract describes it: the code, ErrorInfo
// with the reason and a remedy, and BadRequest naming the field.
func refused(t *testing.T, err error, code codes.Code, reason, field string) {
	t.Helper()
	st := status.Convert(err)
	if st.Code() != code {
		t.Fatalf("%v, want %s", err, code)
	}
	info := detail[*errdetails.ErrorInfo](st.Proto())
	if info.GetDomain() != "kiln.build" || info.GetReason() != reason {
		t.Errorf("ErrorInfo %v, want reason %s", info, reason)
	}
	if info.GetMetadata()["remedy"] == "" {
		t.Errorf("no remedy in %v", info)
	}
	if field == "" {
		return
	}
	for _, v := range detail[*errdetails.BadRequest](st.Proto()).GetFieldViolations() {
		if v.GetField() == field && v.GetDescription() != "" {
			return
		}
	}
	t.Errorf("no violation of %s in %v", field, st.Details())
}

func TestBadRequestsNameFieldAndRemedy(t *testing.T) {
	s := sharedStack(t)
	const df = "FROM scratch\nCOPY <<EOF /x\nEOF\n"
	with := func(change func(*builderv1.BuildSpec)) *builderv1.BuildSpec {
		spec := dockerfile(df)
		change(spec)
		return spec
	}
	for name, tc := range map[string]struct {
		spec  *builderv1.BuildSpec
		field string
	}{
		"no context":         {&builderv1.BuildSpec{}, "spec.context"},
		"empty context":      {&builderv1.BuildSpec{Context: &builderv1.Context{}}, "spec.context.kind"},
		"upper-case tag":     {dockerfile(df, "localhost:5000/Upper:1"), "spec.outputs[0].registry.tags[0]"},
		"tag with a space":   {dockerfile(df, s.ref("ok"), "localhost:5000/a b"), "spec.outputs[0].registry.tags[1]"},
		"tag with a digest":  {dockerfile(df, "localhost:5000/a@sha256:"+strings.Repeat("0", 64)), "spec.outputs[0].registry.tags[0]"},
		"no tag":             {with(func(b *builderv1.BuildSpec) { b.Outputs = push(""); b.GetOutputs()[0].GetRegistry().Tags = nil }), "spec.outputs[0].registry.tags"},
		"project":            {with(func(b *builderv1.BuildSpec) { b.Project = "Not/A Project" }), "spec.project"},
		"platform":           {with(func(b *builderv1.BuildSpec) { b.Platforms = []string{"linux/amd64", "toaster"} }), "spec.platforms[1]"},
		"build argument":     {with(func(b *builderv1.BuildSpec) { b.BuildArgs = map[string]string{"a b": "x"} }), `spec.build_args["a b"]`},
		"relative directory": {directory("here"), "spec.context.directory.path"},
		"inline path leaves": {inline(map[string]string{"Dockerfile": df, "../x": ""}), "spec.context.inline.files"},
		"no Dockerfile":      {inline(map[string]string{"x": ""}), "spec.dockerfile"},
		"git scheme":         {git("file:///etc", ""), "spec.context.git.url"},
		"git option":         {git("https://example.org/x.git", "--upload-pack=x"), "spec.context.git.ref"},
		"cache scope":        {with(func(b *builderv1.BuildSpec) { b.Cache = &builderv1.CachePolicy{Scope: "main"} }), "spec.cache.scope"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, s.build(t, tc.spec).err, codes.InvalidArgument, "INVALID_FIELD", tc.field)
		})
	}
}

// grpcurl prints what a person needs: the field and what to do.
func TestGrpcurlShowsFieldAndRemedy(t *testing.T) {
	s := sharedStack(t)
	out, err := grpcurl(t, "-plaintext", "-d", `{"spec":{}}`, s.Builder.Addr, buildMethod)
	if err == nil {
		t.Fatal("it built")
	}
	for _, want := range []string{"InvalidArgument", "spec.context"} {
		if !strings.Contains(out.Stderr, want) {
			t.Errorf("no %q in\n%s", want, out.Stderr)
		}
	}
}

// A field that the server does not know is refused and not left out, wherever in
// the request it is: a client newer than the server learns it.
func TestUnknownFieldsOnTheWireAreRefused(t *testing.T) {
	s := sharedStack(t)
	unknown := protowire.AppendString(protowire.AppendTag(nil, 7777, protowire.BytesType), "x")
	for name, place := range map[string]func(*builderv1.BuildRequest) proto.Message{
		"request": func(r *builderv1.BuildRequest) proto.Message { return r },
		"spec":    func(r *builderv1.BuildRequest) proto.Message { return r.GetSpec() },
		"output":  func(r *builderv1.BuildRequest) proto.Message { return r.GetSpec().GetOutputs()[0] },
		"file": func(r *builderv1.BuildRequest) proto.Message {
			return r.GetSpec().GetContext().GetInline().GetFiles()["Dockerfile"]
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := &builderv1.BuildRequest{Spec: inline(map[string]string{"Dockerfile": "FROM scratch"}, s.ref("unknown"))}
			place(req).ProtoReflect().SetUnknown(unknown)
			stream := labtest.Must(s.api.Build(labtest.Context(t, time.Minute), req))(t)
			_, err := stream.Recv()
			refused(t, err, codes.InvalidArgument, "UNKNOWN_FIELD", "")
			if !strings.Contains(err.Error(), "7777") {
				t.Errorf("the field is not named: %v", err)
			}
		})
	}
	_, err := s.api.GetBuild(t.Context(), func() *builderv1.GetBuildRequest {
		req := &builderv1.GetBuildRequest{BuildId: "x"}
		req.ProtoReflect().SetUnknown(unknown)
		return req
	}())
	refused(t, err, codes.InvalidArgument, "UNKNOWN_FIELD", "")
}

// What is not served yet says so.
func TestUnservedIsRefused(t *testing.T) {
	s := sharedStack(t)
	_, err := s.api.DrainDaemon(t.Context(), &builderv1.DrainDaemonRequest{Daemon: "lab"})
	refused(t, err, codes.Unimplemented, "UNIMPLEMENTED", "")
}

func TestUnknownBuildIsNotFound(t *testing.T) {
	s := sharedStack(t)
	_, err := s.api.GetBuild(t.Context(), &builderv1.GetBuildRequest{BuildId: "no-such-build"})
	refused(t, err, codes.NotFound, "NOT_FOUND", "")
}
