package grpcapi_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/grpcapi"
)

var translator = grpcapi.Translator{CacheRepository: "localhost:5000/cache"}

// valid is a request that asks for a little of everything.
func valid() *builderv1.BuildSpec {
	return &builderv1.BuildSpec{
		Project: "web",
		Context: &builderv1.Context{Kind: &builderv1.Context_Inline{Inline: &builderv1.InlineContext{
			Files: map[string]*builderv1.InlineFile{
				"Dockerfile": {Content: []byte("FROM scratch")},
				"src/run.sh": {Content: []byte("x"), Mode: 0o755},
			},
		}}},
		Platforms: []string{"linux/amd64", "linux/arm64/v8"},
		Outputs:   []*builderv1.Output{push("localhost:5000/web:1", "localhost:5000/web"), push("web:2")},
		Cache:     &builderv1.CachePolicy{Mode: builderv1.CacheMode_CACHE_MODE_REGISTRY, Scope: "pr-7", FallbackScopes: []string{"main"}},
		Timeout:   durationpb.New(time.Minute),
	}
}

func push(tags ...string) *builderv1.Output {
	return &builderv1.Output{Kind: &builderv1.Output_Registry{Registry: &builderv1.RegistryOutput{Tags: tags}}}
}

func TestSpec(t *testing.T) {
	got, err := translator.Spec(valid())
	if err != nil {
		t.Fatal(err)
	}
	own := build.CacheRef{Ref: "localhost:5000/cache/web:pr-7"}
	want := build.Spec{
		Project: "web",
		Context: build.Context{Inline: &build.InlineContext{Files: []build.File{
			{Path: "Dockerfile", Content: []byte("FROM scratch")},
			{Path: "src/run.sh", Content: []byte("x"), Mode: 0o755},
		}}},
		Dockerfile: build.Dockerfile{Path: "Dockerfile"},
		Platforms:  []string{"linux/amd64", "linux/arm64"},
		Push: &build.Push{
			Tags: []string{"localhost:5000/web:1", "localhost:5000/web:latest", "docker.io/library/web:2"},
			Outputs: [][]string{
				{"localhost:5000/web:1", "localhost:5000/web:latest"}, {"docker.io/library/web:2"},
			},
		},
		Cache:   build.Cache{Export: &own, Imports: []build.CacheRef{own, {Ref: "localhost:5000/cache/web:main"}}},
		Timeout: time.Minute,
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func git(url, ref, subdir string) *builderv1.Context {
	return &builderv1.Context{Kind: &builderv1.Context_Git{Git: &builderv1.GitContext{Url: url, Ref: ref, Subdir: subdir}}}
}

func inline(names ...string) *builderv1.Context {
	files := map[string]*builderv1.InlineFile{"Dockerfile": {}}
	for _, name := range names {
		files[name] = &builderv1.InlineFile{}
	}
	return &builderv1.Context{Kind: &builderv1.Context_Inline{Inline: &builderv1.InlineContext{Files: files}}}
}

func TestSpecRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*builderv1.BuildSpec)
		field  string
		kind   fault.Kind
	}{
		"no context":         {func(s *builderv1.BuildSpec) { s.Context = nil }, "spec.context", fault.InvalidArgument},
		"a kind not served":  {func(s *builderv1.BuildSpec) { s.Context = &builderv1.Context{Kind: &builderv1.Context_Http{}} }, "spec.context", fault.Unimplemented},
		"a path that leaves": {func(s *builderv1.BuildSpec) { s.Context = inline("../x") }, "spec.context.inline.files", fault.InvalidArgument},
		"an absolute path":   {func(s *builderv1.BuildSpec) { s.Context = inline("/x") }, "spec.context.inline.files", fault.InvalidArgument},
		"a path not clean":   {func(s *builderv1.BuildSpec) { s.Context = inline("a//b") }, "spec.context.inline.files", fault.InvalidArgument},
		"a file and its dir": {func(s *builderv1.BuildSpec) { s.Context = inline("a", "a/b") }, "spec.context.inline.files", fault.InvalidArgument},
		"too many bytes":     {tooLarge, "spec.context.inline.files", fault.InvalidArgument},
		"no such Dockerfile": {dockerfile("other"), "spec.dockerfile.path", fault.InvalidArgument},
		"a Dockerfile above": {dockerfile("../Dockerfile"), "spec.dockerfile.path", fault.InvalidArgument},
		"git, a local path":  {func(s *builderv1.BuildSpec) { s.Context = git("/srv/repo", "", "") }, "spec.context.git.url", fault.InvalidArgument},
		"git, file scheme":   {func(s *builderv1.BuildSpec) { s.Context = git("file:///srv/repo", "", "") }, "spec.context.git.url", fault.InvalidArgument},
		"git, remote helper": {func(s *builderv1.BuildSpec) { s.Context = git("ext::sh -c id", "", "") }, "spec.context.git.url", fault.InvalidArgument},
		"git, an option":     {func(s *builderv1.BuildSpec) { s.Context = git("--upload-pack=id", "", "") }, "spec.context.git.url", fault.InvalidArgument},
		"git, a password":    {func(s *builderv1.BuildSpec) { s.Context = git("https://u:pw@h/r.git", "", "") }, "spec.context.git.url", fault.InvalidArgument},
		"git, a fragment":    {func(s *builderv1.BuildSpec) { s.Context = git("https://h/r.git#main", "", "") }, "spec.context.git.url", fault.InvalidArgument},
		"git, ref an option": {func(s *builderv1.BuildSpec) { s.Context = git("https://h/r.git", "--x", "") }, "spec.context.git.ref", fault.InvalidArgument},
		"git, subdir leaves": {func(s *builderv1.BuildSpec) { s.Context = git("https://h/r.git", "", "../x") }, "spec.context.git.subdir", fault.InvalidArgument},
		"a platform":         {func(s *builderv1.BuildSpec) { s.Platforms = []string{"amd64!"} }, "spec.platforms[0]", fault.InvalidArgument},
		"a platform twice":   {func(s *builderv1.BuildSpec) { s.Platforms = []string{"linux/arm64", "linux/arm64/v8"} }, "spec.platforms[1]", fault.InvalidArgument},
		"a tag":              {func(s *builderv1.BuildSpec) { s.Outputs[1] = push("ok:1", "Not A Tag") }, "spec.outputs[1].registry.tags[1]", fault.InvalidArgument},
		"a digest":           {func(s *builderv1.BuildSpec) { s.Outputs[0] = push("a@sha256:" + strings.Repeat("a", 64)) }, "spec.outputs[0].registry.tags[0]", fault.InvalidArgument},
		"an archive":         {func(s *builderv1.BuildSpec) { s.Outputs[0] = &builderv1.Output{Kind: &builderv1.Output_Archive{}} }, "spec.outputs[0]", fault.Unimplemented},
		"secrets":            {func(s *builderv1.BuildSpec) { s.Secrets = []*builderv1.Secret{{Id: "a"}} }, "spec.secrets", fault.Unimplemented},
		"scope without mode": {func(s *builderv1.BuildSpec) { s.Cache = &builderv1.CachePolicy{Scope: "a"} }, "spec.cache.scope", fault.InvalidArgument},
		"a mode not served": {func(s *builderv1.BuildSpec) {
			s.Cache = &builderv1.CachePolicy{Mode: builderv1.CacheMode_CACHE_MODE_INLINE}
		}, "spec.cache.mode", fault.Unimplemented},
		"entries, wrong mode": {func(s *builderv1.BuildSpec) { s.Cache.Imports = []*builderv1.CacheEntry{{Type: "local"}} }, "spec.cache.imports", fault.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			spec := valid()
			tc.change(spec)
			_, err := translator.Spec(spec)
			var refused *fault.Error
			if !errors.As(err, &refused) {
				t.Fatalf("err = %v, want a fault", err)
			}
			if refused.Kind != tc.kind || refused.Field != tc.field || refused.Remedy == "" {
				t.Errorf("kind %v, field %q, remedy %q; want %v, %q and a remedy", refused.Kind, refused.Field, refused.Remedy, tc.kind, tc.field)
			}
			if strings.Contains(refused.Error()+refused.Value, "pw") {
				t.Error("the refusal shows a password")
			}
		})
	}
}

func tooLarge(s *builderv1.BuildSpec) {
	s.Context = inline("a", "b")
	for _, f := range s.GetContext().GetInline().GetFiles() {
		f.Content = make([]byte, 2<<20)
	}
}

func dockerfile(path string) func(*builderv1.BuildSpec) {
	return func(s *builderv1.BuildSpec) {
		s.Dockerfile = &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Path{Path: path}}
	}
}

func TestSpecMissing(t *testing.T) {
	_, err := translator.Spec(nil)
	var refused *fault.Error
	if !errors.As(err, &refused) || refused.Field != "spec" || refused.Remedy == "" {
		t.Errorf("err = %v", err)
	}
}

// Whatever a field of the contract is set to, it is either served or refused:
// a field that is neither would be left out in silence.
func TestEveryFieldCounts(t *testing.T) {
	base, err := translator.Spec(valid())
	if err != nil {
		t.Fatal(err)
	}
	changed := map[string]func(*builderv1.BuildSpec){
		"project": func(s *builderv1.BuildSpec) { s.Project = "other" }, "context": func(s *builderv1.BuildSpec) { s.Context = inline("z") },
		"dockerfile": func(s *builderv1.BuildSpec) {
			s.Dockerfile = &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Inline{Inline: "FROM x"}}
		},
		"target": func(s *builderv1.BuildSpec) { s.Target = "t" }, "build_args": func(s *builderv1.BuildSpec) { s.BuildArgs = map[string]string{"A": "b"} },
		"labels": func(s *builderv1.BuildSpec) { s.Labels = map[string]string{"A": "b"} }, "annotations": func(s *builderv1.BuildSpec) { s.Annotations = map[string]string{"A": "b"} },
		"platforms":      func(s *builderv1.BuildSpec) { s.Platforms = nil },
		"named_contexts": func(s *builderv1.BuildSpec) { s.NamedContexts = map[string]*builderv1.Context{"a": inline()} },
		"secrets":        func(s *builderv1.BuildSpec) { s.Secrets = []*builderv1.Secret{{}} }, "ssh_keys": func(s *builderv1.BuildSpec) { s.SshKeys = []*builderv1.SshKey{{}} },
		"outputs": func(s *builderv1.BuildSpec) { s.Outputs = nil }, "cache": func(s *builderv1.BuildSpec) { s.Cache = nil },
		"attestations": func(s *builderv1.BuildSpec) { s.Attestations = &builderv1.Attestations{Sbom: true} },
		"no_cache":     func(s *builderv1.BuildSpec) { s.NoCache = true }, "no_cache_stages": func(s *builderv1.BuildSpec) { s.NoCacheStages = []string{"a"} },
		"pull": func(s *builderv1.BuildSpec) { s.Pull = true }, "extra_hosts": func(s *builderv1.BuildSpec) { s.ExtraHosts = map[string]string{"a": "::1"} },
		"network": func(s *builderv1.BuildSpec) { s.Network = builderv1.NetworkMode_NETWORK_MODE_NONE }, "shm_size_bytes": func(s *builderv1.BuildSpec) { s.ShmSizeBytes = 1 },
		"ulimits":      func(s *builderv1.BuildSpec) { s.Ulimits = []*builderv1.Ulimit{{}} },
		"entitlements": func(s *builderv1.BuildSpec) { s.Entitlements = []builderv1.Entitlement{1} },
		"frontend":     func(s *builderv1.BuildSpec) { s.Frontend = &builderv1.Frontend{} }, "definition": func(s *builderv1.BuildSpec) { s.Definition = []byte("x") },
		"timeout": func(s *builderv1.BuildSpec) { s.Timeout = nil }, "priority": func(s *builderv1.BuildSpec) { s.Priority = 1 },
		"source_policy_json": func(s *builderv1.BuildSpec) { s.SourcePolicyJson = "{}" }, "source_date_epoch": func(s *builderv1.BuildSpec) { s.SourceDateEpoch = proto.Int64(0) },
	}
	fields := (&builderv1.BuildSpec{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		change, ok := changed[name]
		if !ok {
			t.Errorf("field %s of the contract is not in this test", name)
			continue
		}
		spec := valid()
		change(spec)
		got, err := translator.Spec(spec)
		if err == nil && gocmp.Equal(base, got) {
			t.Errorf("field %s is left out in silence", name)
		}
	}
}
