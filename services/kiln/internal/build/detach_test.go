package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// dirs makes a context and a directory beside it, each with a Dockerfile.
func dirs(t *testing.T) (inside, outside string) {
	t.Helper()
	root := t.TempDir()
	inside, outside = filepath.Join(root, "context"), filepath.Join(root, "docker")
	for _, dir := range []string{filepath.Join(inside, "docker"), outside} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return inside, outside
}

func optionsOf(t *testing.T, o options, args ...string) *options {
	t.Helper()
	o.progress, o.format = "auto", "text"
	t.Cleanup(o.cleanUp)
	if err := o.complete(args, strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	return &o
}

// A detached build is the same build in the contract's terms.
func TestSpec(t *testing.T) {
	inside, _ := dirs(t)
	secret := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(secret, []byte("value"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FROM_ENV", "e")
	o := optionsOf(t, options{
		target: "web", platformFlags: []string{"linux/arm64"}, buildArgs: []string{"A=1", "FROM_ENV"}, labels: []string{"l=2"}, secrets: []string{"id=s,src=" + secret},
		ssh: []string{"default=" + secret}, noCache: true, pull: true, push: true, registryCache: true, cacheRepository: "localhost:5000/cache", cacheScope: "main",
	}, inside, filepath.Join(inside, "docker"), "localhost:5000/web")
	got, err := o.spec()
	if err != nil {
		t.Fatal(err)
	}
	ref := "localhost:5000/cache/web:main"
	want := &builderv1.BuildSpec{
		Project: "web", Target: "web", Platforms: []string{"linux/arm64"}, NoCache: true, Pull: true,
		Dockerfile: &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Path{Path: "docker/Dockerfile"}},
		BuildArgs:  map[string]string{"A": "1", "FROM_ENV": "e"}, Labels: map[string]string{"l": "2"},
		Secrets: []*builderv1.Secret{{Id: "s", Value: []byte("value")}}, SshKeys: []*builderv1.SshKey{{Id: "default", PrivateKey: []byte("value")}},
		Outputs: []*builderv1.Output{{Kind: &builderv1.Output_Registry{Registry: &builderv1.RegistryOutput{Tags: []string{"localhost:5000/web:latest"}}}}},
		Cache: &builderv1.CachePolicy{
			Mode:    builderv1.CacheMode_CACHE_MODE_EXPLICIT,
			Imports: []*builderv1.CacheEntry{{Type: "registry", Attributes: map[string]string{"ref": ref}}},
			Exports: []*builderv1.CacheEntry{{Type: "registry", Attributes: map[string]string{"ref": ref, "mode": "max", "image-manifest": "true", "oci-mediatypes": "true"}}},
		},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// A Dockerfile outside the context goes as text; one that cannot is refused.
func TestSpecOfADockerfileOutside(t *testing.T) {
	inside, outside := dirs(t)
	o := optionsOf(t, options{}, inside, outside, "web")
	spec, err := o.spec()
	if err != nil || spec.GetDockerfile().GetInline() != "FROM scratch\n" || spec.GetOutputs() != nil || spec.GetCache() != nil {
		t.Errorf("%v, %v", spec, err)
	}
	file := filepath.Join(outside, "Dockerfile")
	if err := os.WriteFile(file+".dockerignore", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := o.spec(); err == nil || !strings.Contains(err.Error(), "Dockerfile.dockerignore") {
		t.Errorf("an ignore file beside it: %v", err)
	}
	if err := os.Remove(file + ".dockerignore"); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, maxDockerfile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := o.spec(); err == nil || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("a large one: %v", err)
	}
}

// What needs a connection until the end is refused with what to do.
func TestSpecRefuses(t *testing.T) {
	inside, outside := dirs(t)
	for want, o := range map[string]options{
		"name a key": {ssh: []string{"default"}}, "write it like id=": {secrets: []string{"x"}}, "--label": {labels: []string{"=l"}},
	} {
		if _, err := optionsOf(t, o, inside, outside, "web").spec(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
