package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// frontendImage builds an image of BuildKit's own Dockerfile frontend, and pushes it.
func (s *stack) frontendImage(t *testing.T) string {
	t.Helper()
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY dockerfile-frontend /bin/\nENTRYPOINT [\"/bin/dockerfile-frontend\"]\n"})
	binary := labtest.Must(os.ReadFile(labtest.Must(lab.Bin("dockerfile-frontend"))(t)))(t)
	if err := os.WriteFile(filepath.Join(dir, "dockerfile-frontend"), binary, 0o755); err != nil {
		t.Fatal(err)
	}
	ref := s.ref("frontends/dockerfile")
	s.succeed(t, directory(dir, ref))
	return ref
}

// A frontend is an image that policy allows, whether the request or the first line
// of the Dockerfile names it.
func TestFieldFrontend(t *testing.T) {
	s := sharedStack(t)
	source := s.frontendImage(t)
	gateway := func(source string) *builderv1.Frontend {
		return &builderv1.Frontend{Name: "gateway.v0", Attributes: map[string]string{"source": source}}
	}
	text := "FROM " + s.base + "\nARG WHO\nRUN echo $WHO >/who\n"
	named := dockerfile(text, s.ref("gateway"))
	named.Frontend, named.BuildArgs = gateway(source), map[string]string{"WHO": "gateway"}
	s.succeed(t, named)
	if got := file(t, s.ref("gateway"), "", "/who"); got != "gateway\n" {
		t.Errorf("/who is %q", got)
	}
	bySyntax := dockerfile("# syntax="+source+"\n"+text, s.ref("syntax"))
	bySyntax.BuildArgs = map[string]string{"WHO": "syntax"}
	r := s.succeed(t, bySyntax)
	if !stepNamed(r, "frontends/dockerfile") {
		t.Errorf("the image of the syntax line was not used:\n%v", r.events)
	}
	if got := file(t, s.ref("syntax"), "", "/who"); got != "syntax\n" {
		t.Errorf("/who is %q", got)
	}

	builtIn := dockerfile("# syntax=docker/dockerfile:1\n"+text, s.ref("official"))
	builtIn.Frontend = &builderv1.Frontend{Name: "dockerfile.v0", Attributes: map[string]string{"hostname": "named-by-attribute"}}
	s.succeed(t, builtIn)

	const foreign = "registry.example/evil:1"
	denied := dockerfile(text)
	denied.Frontend = gateway(foreign)
	fromInside := inline(map[string]string{"Dockerfile": "# syntax=" + foreign + "\n" + text})
	for name, spec := range map[string]*builderv1.BuildSpec{
		"named": denied, "by an inline Dockerfile": dockerfile("# syntax=" + foreign + "\n" + text), "by a file": fromInside,
		"by a file of a directory": directory(s.dir(t, map[string]string{"dockerfile": "# syntax=" + foreign + "\n" + text})),
	} {
		t.Run(name, func(t *testing.T) { refused(t, s.build(t, spec).err, codes.PermissionDenied, "POLICY_DENIED", "") })
	}
	substitute := dockerfile(text)
	substitute.Frontend = gateway(source)
	substitute.NamedContexts = map[string]*builderv1.Context{source: {Kind: &builderv1.Context_Image{Image: &builderv1.ImageContext{Reference: foreign}}}}
	if err := s.build(t, substitute).err; err == nil || !strings.Contains(err.Error(), "frontend's image") {
		t.Errorf("a named context stands in for the frontend: %v", err)
	}
}

// stepNamed reports whether a step of the build has text in its name.
func stepNamed(r result, text string) bool {
	for _, e := range r.events {
		if strings.Contains(e.GetStep().GetName(), text) {
			return true
		}
	}
	return false
}

// A graph of the caller's own is built as it is.
func TestFieldDefinition(t *testing.T) {
	s := sharedStack(t)
	marshal := func(state llb.State) []byte {
		graph := labtest.Must(state.Marshal(t.Context(), llb.LinuxAmd64))(t)
		return labtest.Must(proto.Marshal(graph.ToPB()))(t)
	}
	base := llb.Image(s.base)
	run := base.File(llb.Mkfile("/in", 0o644, []byte("graph+"))).Run(llb.Shlex(`sh -c "cat /in /run/secrets/s >/out"`), llb.AddSecret("/run/secrets/s", llb.SecretID("s")))
	spec := &builderv1.BuildSpec{Definition: marshal(run.Root()), Outputs: push(s.ref("llb"))}
	spec.Secrets = []*builderv1.Secret{{Id: "s", Value: []byte("secret")}}
	s.succeed(t, spec)
	if got := file(t, s.ref("llb"), "", "/out"); got != "graph+secret" {
		t.Errorf("/out is %q", got)
	}

	for name, definition := range map[string][]byte{
		"no protobuf":       []byte("x"),
		"no operations":     labtest.Must(proto.Marshal(&pb.Definition{Metadata: map[string]*pb.OpMetadata{"a": {}}}))(t),
		"a local directory": marshal(llb.Local("context")),
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, s.build(t, &builderv1.BuildSpec{Definition: definition}).err, codes.InvalidArgument, "INVALID_FIELD", "spec.definition")
		})
	}
	_, failure := s.fail(t, &builderv1.BuildSpec{Definition: marshal(base.Run(llb.Shlex("true"), llb.Network(pb.NetMode_HOST)).Root())})
	if failure.GetReason() != errorsv1.Reason_REASON_POLICY_DENIED {
		t.Errorf("a right that a graph takes for itself: %v", failure)
	}
}

// The caller's own rules on sources are the daemon's to hold to.
func TestFieldSourcePolicyJSON(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM " + s.base + "\nRUN true\n")
	rule := func(action, identifier string) string {
		return string(labtest.Must(json.Marshal(map[string]any{"rules": []any{
			map[string]any{"action": action, "selector": map[string]any{"identifier": identifier}},
		}}))(t))
	}
	spec.SourcePolicyJson = rule("ALLOW", "docker-image://*")
	s.succeed(t, spec)
	spec.SourcePolicyJson = rule("DENY", "docker-image://"+s.base)
	r, failure := s.fail(t, spec)
	if failure.GetReason() != errorsv1.Reason_REASON_POLICY_DENIED || failure.GetClass() != errorsv1.FailureClass_FAILURE_CLASS_POLICY {
		t.Errorf("%v", r.outcome.GetError())
	}
	spec.SourcePolicyJson = rule("PERHAPS", "x")
	refused(t, s.build(t, spec).err, codes.InvalidArgument, "INVALID_FIELD", "spec.source_policy_json")
}

// The same build at another time gives the same image, to the digest.
func TestFieldSourceDateEpoch(t *testing.T) {
	s := sharedStack(t)
	const epoch = 1700000000
	build := func() string {
		spec := dockerfile("FROM "+s.base+"\nRUN sleep 1.1; echo same >/file && mkdir /dir\n", s.ref("epoch"))
		spec.NoCache, spec.SourceDateEpoch = true, proto.Int64(epoch)
		return s.succeed(t, spec).outcome.GetOutputs()[0].GetDigest()
	}
	if first, second := build(), build(); first != second {
		t.Errorf("%s, and then %s", first, second)
	}
	config := labtest.Must(labtest.Must(image.Pull(t.Context(), s.ref("epoch"), ""))(t).ConfigFile())(t)
	if config.Created.Unix() != epoch {
		t.Errorf("the image was created at %s", config.Created)
	}
}
