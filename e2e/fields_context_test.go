package e2e_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
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

func httpContext(url, digest string) *builderv1.Context {
	return &builderv1.Context{Kind: &builderv1.Context_Http{Http: &builderv1.HttpContext{Url: url, Digest: digest}}}
}

func uploadedContext(digest string) *builderv1.Context {
	return &builderv1.Context{Kind: &builderv1.Context_Uploaded{Uploaded: &builderv1.UploadedContext{Digest: digest}}}
}

// tarGz is an archive of files.
func tarGz(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var archive bytes.Buffer
	packed := gzip.NewWriter(&archive)
	w := tar.NewWriter(packed)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: time.Unix(1700000000, 0)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), packed.Close()); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// upload sends an archive with UploadContext and returns the digest of what it holds.
func (s *stack) upload(t *testing.T, archive []byte) string {
	t.Helper()
	stream := labtest.Must(s.api.UploadContext(labtest.Context(t, time.Minute)))(t)
	for _, req := range []*builderv1.UploadContextRequest{
		{Piece: &builderv1.UploadContextRequest_Header{Header: &builderv1.UploadHeader{Project: "default"}}},
		{Piece: &builderv1.UploadContextRequest_Data{Data: archive}},
	} {
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	return labtest.Must(stream.CloseAndRecv())(t).GetDigest()
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
	archives := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(tarGz(t, map[string]string{"which": "http"}))
	}))
	t.Cleanup(archives.Close)
	for name, tc := range map[string]struct {
		context *builderv1.Context
		want    string
	}{
		"http":       {httpContext(archives.URL+"/a.tar.gz", ""), "http"},
		"uploaded":   {uploadedContext(s.upload(t, tarGz(t, map[string]string{"which": "uploaded"}))), "uploaded"},
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

// An archive is fetched by the builder, as a step of the build that tells how far it
// has come and shows nothing of the URL but host and path; what is not there, is
// something else, or is not allowed fails as such.
func TestHTTPContext(t *testing.T) {
	s := sharedStack(t)
	archive := tarGz(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY big /\n", "big": rand.Text()})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow.tar.gz":
			w.Header().Set("Content-Length", strconv.Itoa(len(archive)))
			_, _ = w.Write(archive[:20])
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Second)
			_, _ = w.Write(archive[20:])
		case "/moved":
			http.Redirect(w, r, "/slow.tar.gz", http.StatusFound)
		case "/away":
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
		case "/private":
			w.WriteHeader(http.StatusForbidden)
		case "/text":
			_, _ = io.WriteString(w, strings.Repeat("this is no archive ", 99))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(server.Close)

	r := s.succeed(t, &builderv1.BuildSpec{Context: httpContext(server.URL+"/slow.tar.gz?token=hidden", "")})
	name := "[internal] fetch " + strings.TrimPrefix(server.URL, "http://") + "/slow.tar.gz"
	states, moved := map[builderv1.StepState]bool{}, int64(0)
	for _, e := range r.events {
		if step := e.GetStep(); step.GetName() == name {
			states[step.GetState()] = true
			if step.GetTotalBytes() == int64(len(archive)) {
				moved = max(moved, step.GetCurrentBytes())
			}
		}
		if strings.Contains(e.String(), "hidden") {
			t.Errorf("an event shows the query: %v", e)
		}
	}
	if !states[builderv1.StepState_STEP_STATE_STARTED] || !states[builderv1.StepState_STEP_STATE_DONE] || moved < 20 {
		t.Errorf("the step was seen in %v, with %d bytes", states, moved)
	}
	if r.outcome.GetTimes().GetContext().AsDuration() < time.Second {
		t.Errorf("times: %v", r.outcome.GetTimes())
	}
	s.succeed(t, &builderv1.BuildSpec{Context: httpContext(server.URL+"/moved", fmt.Sprintf("sha256:%x", sha256.Sum256(archive)))})

	for path, want := range map[string]struct {
		digest string
		reason errorsv1.Reason
		class  errorsv1.FailureClass
	}{
		"/none":        {"", notFound, byUser},
		"/private":     {"", sourceDenied, byUser},
		"/text":        {"", errorsv1.Reason_REASON_ARCHIVE_INVALID, byUser},
		"/away":        {"", errorsv1.Reason_REASON_POLICY_DENIED, errorsv1.FailureClass_FAILURE_CLASS_POLICY},
		"/slow.tar.gz": {"sha256:" + strings.Repeat("0", 64), errorsv1.Reason_REASON_DIGEST_MISMATCH, byUser},
	} {
		t.Run(path, func(t *testing.T) {
			r, failure := s.fail(t, &builderv1.BuildSpec{Context: httpContext(server.URL+path+"?token=hidden", want.digest)})
			if failure.GetReason() != want.reason || failure.GetClass() != want.class || !strings.HasPrefix(failure.GetStep(), "[internal] fetch ") {
				t.Errorf("%v", r.outcome.GetError())
			}
			if strings.Contains(r.outcome.String(), "hidden") {
				t.Errorf("the outcome shows the query: %v", r.outcome)
			}
			hasRemedy(t, r)
		})
	}
	refused(t, s.build(t, &builderv1.BuildSpec{Context: httpContext("http://169.254.169.254/x.tar", "")}).err, codes.PermissionDenied, "POLICY_DENIED", "")
}

// A context that was uploaded serves every build that names it; one that was not is
// refused before there is a build.
func TestUploadedContext(t *testing.T) {
	s := sharedStack(t)
	digest := s.upload(t, tarGz(t, map[string]string{
		"Dockerfile": "FROM " + s.base + "\nCOPY . /all/\nRUN cat /all/a; ls -A /all\n", "a": "uploaded\n", ".dockerignore": "skipped\n", "skipped": "x",
	}))
	for range 2 {
		spec := &builderv1.BuildSpec{Context: uploadedContext(digest), NoCache: true}
		if log := s.succeed(t, spec).log(); !strings.HasPrefix(log, "uploaded\n") || strings.Contains(log, "skipped") {
			t.Errorf("log: %q", log)
		}
	}
	named := dockerfile("FROM scratch\nCOPY --from=up a /\n", s.ref("uploaded"))
	named.NamedContexts = map[string]*builderv1.Context{"up": uploadedContext(digest)}
	s.succeed(t, named)
	if got := file(t, s.ref("uploaded"), "", "/a"); got != "uploaded\n" {
		t.Errorf("/a is %q", got)
	}
	unknown := uploadedContext("sha256:" + strings.Repeat("0", 64))
	refused(t, s.build(t, &builderv1.BuildSpec{Context: unknown}).err, codes.NotFound, "NOT_FOUND", "")
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
