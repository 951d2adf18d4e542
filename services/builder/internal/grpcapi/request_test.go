package grpcapi_test

import (
	"errors"
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
	entry := func(ref string) build.CacheEntry {
		return build.CacheEntry{Type: "registry", Attributes: map[string]string{"ref": ref}}
	}
	export := entry("localhost:5000/cache/web:pr-7")
	for _, key := range []string{"image-manifest", "oci-mediatypes"} {
		export.Attributes[key] = "true"
	}
	export.Attributes["mode"] = "max"
	want := build.Spec{
		Project: "web",
		Context: build.Context{Inline: &build.InlineContext{Files: []build.File{
			{Path: "Dockerfile", Content: []byte("FROM scratch")},
			{Path: "src/run.sh", Content: []byte("x"), Mode: 0o755},
		}}},
		Dockerfile: build.Dockerfile{Path: "Dockerfile"},
		Platforms:  []string{"linux/amd64", "linux/arm64"},
		Outputs: []build.Output{
			{Registry: &build.RegistryOutput{Tags: []string{"localhost:5000/web:1", "localhost:5000/web:latest"}}},
			{Registry: &build.RegistryOutput{Tags: []string{"docker.io/library/web:2"}}},
		},
		Cache: build.Cache{
			Exports: []build.CacheEntry{export},
			Imports: []build.CacheEntry{entry("localhost:5000/cache/web:pr-7"), entry("localhost:5000/cache/web:main")},
		},
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

func tooLarge(s *builderv1.BuildSpec) {
	s.Context = inline("a", "b")
	for _, f := range s.GetContext().GetInline().GetFiles() {
		f.Content = make([]byte, 2<<20)
	}
}

func TestSpecMissing(t *testing.T) {
	_, err := translator.Spec(nil)
	var refused *fault.Error
	if !errors.As(err, &refused) || refused.Field != "spec" || refused.Remedy == "" {
		t.Errorf("err = %v", err)
	}
}

// Whatever a field of the contract is set to, it counts or is refused: what is
// asked for is never left out in silence.
func TestEveryFieldCounts(t *testing.T) {
	key := privateKey(t)
	changed := map[string]func(*builderv1.BuildSpec){
		"project":            func(s *builderv1.BuildSpec) { s.Project = "other" },
		"context":            func(s *builderv1.BuildSpec) { s.Context = inline("z") },
		"dockerfile":         func(s *builderv1.BuildSpec) { s.Dockerfile = text("FROM x") },
		"target":             func(s *builderv1.BuildSpec) { s.Target = "t" },
		"build_args":         func(s *builderv1.BuildSpec) { s.BuildArgs = map[string]string{"A": "b"} },
		"labels":             func(s *builderv1.BuildSpec) { s.Labels = map[string]string{"A": "b"} },
		"annotations":        func(s *builderv1.BuildSpec) { s.Annotations = map[string]string{"A": "b"} },
		"platforms":          func(s *builderv1.BuildSpec) { s.Platforms = nil },
		"named_contexts":     func(s *builderv1.BuildSpec) { s.NamedContexts = map[string]*builderv1.Context{"a": inline()} },
		"secrets":            func(s *builderv1.BuildSpec) { s.Secrets = []*builderv1.Secret{{Id: "a"}} },
		"ssh_keys":           func(s *builderv1.BuildSpec) { s.SshKeys = []*builderv1.SshKey{{PrivateKey: key}} },
		"outputs":            func(s *builderv1.BuildSpec) { s.Outputs = nil },
		"cache":              func(s *builderv1.BuildSpec) { s.Cache = nil },
		"attestations":       func(s *builderv1.BuildSpec) { s.Attestations = &builderv1.Attestations{Sbom: true} },
		"no_cache":           func(s *builderv1.BuildSpec) { s.NoCache = true },
		"no_cache_stages":    func(s *builderv1.BuildSpec) { s.NoCacheStages = []string{"a"} },
		"pull":               func(s *builderv1.BuildSpec) { s.Pull = true },
		"extra_hosts":        func(s *builderv1.BuildSpec) { s.ExtraHosts = map[string]string{"a": "::1"} },
		"network":            func(s *builderv1.BuildSpec) { s.Network = builderv1.NetworkMode_NETWORK_MODE_NONE },
		"shm_size_bytes":     func(s *builderv1.BuildSpec) { s.ShmSizeBytes = 1 },
		"ulimits":            func(s *builderv1.BuildSpec) { s.Ulimits = []*builderv1.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}} },
		"entitlements":       func(s *builderv1.BuildSpec) { s.Entitlements = []builderv1.Entitlement{1} },
		"frontend":           func(s *builderv1.BuildSpec) { s.Frontend = &builderv1.Frontend{Name: "dockerfile.v0"} },
		"definition":         func(s *builderv1.BuildSpec) { *s = builderv1.BuildSpec{Project: "web", Definition: []byte("x")} },
		"timeout":            func(s *builderv1.BuildSpec) { s.Timeout = nil },
		"priority":           func(s *builderv1.BuildSpec) { s.Priority = builderv1.Priority_PRIORITY_HIGH },
		"source_policy_json": func(s *builderv1.BuildSpec) { s.SourcePolicyJson = "{}" },
		"source_date_epoch":  func(s *builderv1.BuildSpec) { s.SourceDateEpoch = proto.Int64(0) },
		"retry":              func(s *builderv1.BuildSpec) { s.Retry = &builderv1.RetryPolicy{MaxAttempts: 2} },
	}
	base, err := translator.Spec(valid())
	if err != nil {
		t.Fatal(err)
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
		switch {
		case err != nil:
			t.Errorf("field %s is refused: %v", name, err)
		case gocmp.Equal(base, got):
			t.Errorf("field %s is left out in silence", name)
		}
	}
}
