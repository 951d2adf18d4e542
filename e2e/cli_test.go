package e2e_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// kiln runs the kiln command against the stack's builder.
func (s *stack) kiln(t *testing.T, args ...string) (lab.Output, error) {
	t.Helper()
	return lab.Exec(labtest.Context(t, 2*time.Minute), lab.Command{
		Path: labtest.Must(lab.Bin("kiln"))(t), Args: args, Env: []string{"KILN_BUILDER=" + s.Builder.Addr},
	})
}

// outcome is what `kiln build --format json` prints.
type outcome struct {
	State       string
	Digest      string
	TotalSteps  int `json:"total_steps"`
	CachedSteps int `json:"cached_steps"`
}

func readOutcome(t *testing.T, out lab.Output) outcome {
	t.Helper()
	var o outcome
	if err := json.Unmarshal([]byte(out.Stdout), &o); err != nil {
		t.Fatalf("%v in %q", err, out.Stdout)
	}
	return o
}

// kiln build CONTEXT_DIR DOCKERFILE_DIR TAG: the context without what
// .dockerignore names, a Dockerfile of another directory, arguments, a secret, a
// target; pushed, and named by its digest.
func TestS8_KilnBuild(t *testing.T) {
	s := sharedStack(t)
	context := s.dir(t, map[string]string{".dockerignore": "*.secret\n", "a.txt": "from the context", "b.secret": "no"})
	docker := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + ` AS first
ARG WHO
COPY . /app
RUN --mount=type=secret,id=token test -s /run/secrets/token && test ! -e /app/b.secret && echo "$WHO" >/who
FROM first AS second
RUN false
`})
	token := filepath.Join(t.TempDir(), "token")
	labtest.Write(t, filepath.Dir(token), map[string]string{"token": "0123456789"})
	out := labtest.Must(s.kiln(t, "build", context, docker, s.ref("s8-build"), "--push", "--progress", "plain", "--format", "json",
		"--target", "first", "--build-arg", "WHO=me", "--secret", "id=token,src="+token, "--label", "org.example.a=b"))(t)

	o := readOutcome(t, out)
	if served := labtest.Must(image.Digest(t.Context(), s.ref("s8-build")))(t); o.State != "SUCCEEDED" || o.Digest != served {
		t.Errorf("outcome %+v, the registry serves %s", o, served)
	}
	if o.TotalSteps == 0 {
		t.Errorf("outcome %+v has no steps", o)
	}
	if got := file(t, s.ref("s8-build"), "", "/who"); got != "me\n" {
		t.Errorf("/who is %q", got)
	}
	if got := file(t, s.ref("s8-build"), "", "/app/a.txt"); got != "from the context" {
		t.Errorf("/app/a.txt is %q", got)
	}
	if !strings.Contains(out.Stderr, "RUN --mount=type=secret") {
		t.Errorf("no step in the plain progress:\n%s", out.Stderr)
	}
	if strings.Contains(out.Stderr+out.Stdout, "0123456789") {
		t.Error("the secret is shown")
	}
}

// kiln build-registry leaves the cache in the registry and takes it from there on
// a daemon that has nothing.
func TestS8_KilnBuildRegistry(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN echo " + unique() + " >/x\nRUN wc /x >/y\n"})
	args := []string{
		"build-registry", dir, dir, s.ref("s8-registry"), "--push", "--progress", "quiet", "--format", "json",
		"--cache-repository", s.Registry.Addr + "/cache",
	}
	first := readOutcome(t, labtest.Must(s.kiln(t, args...))(t))
	desc := labtest.Must(image.Descriptor(t.Context(), s.Registry.Addr+"/cache/s8-registry:native"))(t)
	if desc.MediaType != types.OCIManifestSchema1 {
		t.Errorf("the cache is %s, want an image manifest", desc.MediaType)
	}

	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	empty := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{s.Registry.Addr}}))(t)
	builder := labtest.Must(l.StartBuilder(ctx, lab.BuilderConfig(nil, empty.Addr, s.Registry.Addr), lab.ServiceOptions{}))(t)
	second := readOutcome(t, labtest.Must(s.kiln(t, append(args, "--builder", builder.Addr)...))(t))
	if second.CachedSteps < 2 {
		t.Errorf("on the empty daemon: %+v, want both RUN cached", second)
	}
	if first.Digest != second.Digest {
		t.Errorf("%s, and from the cache %s", first.Digest, second.Digest)
	}
}

// A failing build ends with a code other than 0 and shows the place; one whose
// builder is not there says what to check.
func TestS8_KilnBuildFails(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN echo last words; exit 3\n"})
	out, err := s.kiln(t, "build", dir, dir, s.ref("s8-fails"), "--progress", "plain", "--format", "json")
	if err == nil {
		t.Fatal("it ended with 0")
	}
	for _, want := range []string{"Dockerfile:2", ">>> RUN echo last words", "exit code: 3", "last words"} {
		if !strings.Contains(out.Stderr, want) {
			t.Errorf("no %q in\n%s", want, out.Stderr)
		}
	}
	if o := readOutcome(t, out); o.State != "FAILED" || o.Digest != "" {
		t.Errorf("outcome %+v", o)
	}
	out, err = s.kiln(t, "build", dir, dir, s.ref("s8-fails"), "--builder", "127.0.0.1:1", "--progress", "plain")
	if err == nil || !strings.Contains(out.Stderr, "127.0.0.1:1") || !strings.Contains(out.Stderr, "kiln up") {
		t.Errorf("without a builder: %v\n%s", err, out.Stderr)
	}
	for _, args := range [][]string{
		{"build", dir, dir},
		{"build", dir + "/none", dir, s.ref("x")},
		{"build", dir, s.src, s.ref("x")},
		{"build", dir, dir, "Not A Tag"},
		{"build", dir, dir, s.ref("x"), "--platform", "toaster/"},
		{"build", dir, dir, s.ref("x"), "--progress", "loud"},
	} {
		if out, err := s.kiln(t, args...); err == nil || len(strings.Split(strings.TrimSpace(out.Stderr), "\n")) > 3 {
			t.Errorf("%v: %v, want one clear line:\n%s", args, err, out.Stderr)
		}
	}
}

// Two platforms in one `kiln build`.
func TestS10_KilnBuildTwoPlatforms(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM --platform=$BUILDPLATFORM " + s.base +
		" AS b\nARG TARGETARCH\nRUN echo $TARGETARCH >/arch\nFROM scratch\nCOPY --from=b /arch /\n"})
	labtest.Must(s.kiln(t, "build", dir, dir, s.ref("s10-kiln"), "--push", "--platform", "linux/amd64,linux/arm64", "--progress", "quiet"))(t)
	for _, arch := range []string{"amd64", "arm64"} {
		if got := file(t, s.ref("s10-kiln"), "linux/"+arch, "/arch"); got != arch+"\n" {
			t.Errorf("%s: /arch is %q", arch, got)
		}
	}
}

// A file of the context that its user may not read ends the build and is named: an
// empty one in its place would make another image, and say nothing.
func TestKilnBuildReadsAllOrFails(t *testing.T) {
	s := sharedStack(t)
	root := t.TempDir()
	dir := filepath.Join(root, "context")
	for name, mode := range map[string]os.FileMode{"context/Dockerfile": 0o644, "context/private": 0o600} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(path, []byte("FROM "+s.base+"\nCOPY private /private\n"), mode)); err != nil {
			t.Fatal(err)
		}
	}
	kiln := filepath.Join(root, "kiln") // where another user may run it
	if err := errors.Join(os.Chmod(filepath.Dir(root), 0o755), os.WriteFile(kiln, labtest.Must(os.ReadFile(labtest.Must(lab.Bin("kiln"))(t)))(t), 0o755)); err != nil {
		t.Fatal(err)
	}
	out, err := lab.Exec(labtest.Context(t, time.Minute), lab.Command{
		Path: "setpriv",
		Args: []string{
			"--reuid=65534", "--regid=65534", "--clear-groups", "--",
			kiln, "build", dir, dir, s.ref("unreadable"), "--push", "--progress", "plain", "--format", "json",
		},
		Env: []string{"KILN_BUILDER=" + s.Builder.Addr, "HOME=" + root},
	})
	if err == nil || !strings.Contains(out.Stderr, `"private" cannot be read`) {
		t.Errorf("%v\n%s", err, out.Stderr)
	}
	if o := readOutcome(t, out); o.State != "FAILED" || o.Digest != "" {
		t.Errorf("outcome %+v", o)
	}
}
