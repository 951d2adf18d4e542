package e2e_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// The kinds of contexts, as messages.

func inlineContext(files map[string]string) *builderv1.Context { return inline(files).GetContext() }

func directoryContext(path string) *builderv1.Context { return directory(path).GetContext() }

func gitContext(url, ref string) *builderv1.Context { return git(url, ref).GetContext() }

func imageContext(ref string) *builderv1.Context {
	return &builderv1.Context{Kind: &builderv1.Context_Image{Image: &builderv1.ImageContext{Reference: ref}}}
}

func layoutContext(path, digest string) *builderv1.Context {
	return &builderv1.Context{Kind: &builderv1.Context_OciLayout{OciLayout: &builderv1.OciLayoutContext{Path: path, Digest: digest}}}
}

// imageWith builds and pushes an image that holds a file.
func (s *stack) imageWith(t *testing.T, name, path, content string) string {
	t.Helper()
	spec := inline(map[string]string{"Dockerfile": "FROM scratch\nENV FROM_IMAGE=yes\nCOPY f " + path + "\n", "f": content}, s.ref(name))
	s.succeed(t, spec)
	return s.ref(name)
}

// layoutOf writes an image of the registry as an OCI layout below the allowed root.
func (s *stack) layoutOf(t *testing.T, ref string) (dir, digest string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	img := labtest.Must(image.Pull(ctx, ref, ""))(t)
	dir = filepath.Join(s.dir(t, nil), "layout")
	path := labtest.Must(layout.Write(dir, empty.Index))(t)
	if err := path.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return dir, labtest.Must(img.Digest())(t).String()
}

// Each kind of context gives its files to COPY, and its Dockerfile, or takes one
// that stands in the request. (TestDirectoryContext, TestGitContext and
// TestUploadedContext look closer at theirs.)
func TestFieldContext(t *testing.T) {
	s := sharedStack(t)
	const own = "FROM scratch\nCOPY which /own\n"
	ref := s.imageWith(t, "context-image", "/which", "image")
	withDockerfile := s.imageWith(t, "context-dockerfile", "/Dockerfile", own)
	dir, digest := s.layoutOf(t, ref)
	url, _ := gitServer(t, s.base)
	for name, tc := range map[string]struct {
		context *builderv1.Context
		want    string
	}{
		"inline":     {inlineContext(map[string]string{"which": "inline"}), "inline"},
		"directory":  {directoryContext(s.dir(t, map[string]string{"which": "directory"})), "directory"},
		"git":        {gitContext(url, "main"), "main"},
		"image":      {imageContext(ref), "image"},
		"oci_layout": {layoutContext(dir, digest), "image"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := &builderv1.BuildSpec{Context: tc.context, Outputs: push(s.ref("context-of-" + name))}
			spec.Dockerfile = &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Inline{Inline: own}}
			s.succeed(t, spec)
			if got := file(t, s.ref("context-of-"+name), "", "/own"); got != tc.want {
				t.Errorf("/own is %q, want %q", got, tc.want)
			}
		})
	}
	t.Run("a Dockerfile in an image", func(t *testing.T) {
		_, failure := s.fail(t, &builderv1.BuildSpec{Context: imageContext(withDockerfile)})
		if !strings.Contains(failure.GetReference(), "which") {
			t.Errorf("it was not read: %v", failure)
		}
	})
}

// Named contexts of all kinds stand beside one another, and never for one another,
// though they have the same names, sizes, modes and times.
func TestFieldNamedContexts(t *testing.T) {
	s := sharedStack(t)
	old := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	directory := func(content string) *builderv1.Context {
		dir := s.dir(t, map[string]string{"f": content, ".dockerignore": "secret\n", "secret": "secret"})
		if err := os.Chtimes(filepath.Join(dir, "f"), old, old); err != nil {
			t.Fatal(err)
		}
		return directoryContext(dir)
	}
	ref := s.imageWith(t, "named-image", "/f", "img0")
	dir, digest := s.layoutOf(t, s.imageWith(t, "named-layout", "/f", "oci0"))
	url, _ := gitServer(t, s.base)
	text := `FROM busy
COPY f /main
COPY --from=in f /in
COPY --from=dir . /dir/
COPY --from=other f /other
COPY --from=repo which /repo
COPY --from=docker.io/library/alpine f /image
COPY --from=layout f /layout
RUN test ! -e /dir/secret && cat /main /in /dir/f /other /repo /image /layout
`
	for _, round := range []string{"a", "b"} {
		spec := &builderv1.BuildSpec{
			Project: "named", Context: inlineContext(map[string]string{"f": "main"}),
			Dockerfile: &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Inline{Inline: text}},
			NamedContexts: map[string]*builderv1.Context{
				"busy": imageContext(s.base), "in": inlineContext(map[string]string{"f": "inl" + round}),
				"dir": directory("dir" + round), "other": directory("oth" + round), "repo": gitContext(url, "main"),
				"docker.io/library/alpine:latest": imageContext(ref), "layout": layoutContext(dir, digest),
			},
		}
		spec.NoCache = true
		if got, want := s.succeed(t, spec).log(), "main"+"inl"+round+"dir"+round+"oth"+round+"mainimg0oci0"; !strings.HasSuffix(got, want) {
			t.Errorf("round %s: %q, want %q", round, got, want)
		}
	}
	inherits := dockerfile("FROM named\nCOPY --from=busy /bin/busybox /bin/sh\nRUN echo $FROM_IMAGE\n")
	inherits.NamedContexts = map[string]*builderv1.Context{"named": layoutContext(dir, digest), "busy": imageContext(s.base)}
	if log := s.succeed(t, inherits).log(); log != "yes\n" {
		t.Errorf("a stage from a named image has not its environment: %q", log)
	}
}

// An OCI layout is read below the allowed roots only, by a digest that it holds.
func TestOCILayoutsAreGuarded(t *testing.T) {
	s := sharedStack(t)
	dir, digest := s.layoutOf(t, s.base)
	absent := "sha256:" + strings.Repeat("0", 64)
	outside := t.TempDir()
	if err := os.CopyFS(filepath.Join(outside, "layout"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	refused(t, s.build(t, &builderv1.BuildSpec{Context: layoutContext(filepath.Join(outside, "layout"), digest)}).err,
		codes.PermissionDenied, "DIRECTORY_NOT_ALLOWED", "")
	refused(t, s.build(t, &builderv1.BuildSpec{Context: layoutContext(dir, absent)}).err,
		codes.InvalidArgument, "INVALID_FIELD", "spec.context.oci_layout.digest")

	// A blob that is a link out of the layout is no blob of it.
	blob := filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(absent, "sha256:"))
	if err := os.Symlink(filepath.Join(outside, "layout", "oci-layout"), blob); err != nil {
		t.Fatal(err)
	}
	refused(t, s.build(t, &builderv1.BuildSpec{Context: layoutContext(dir, absent)}).err,
		codes.InvalidArgument, "INVALID_FIELD", "spec.context.oci_layout.digest")
}
