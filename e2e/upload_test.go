package e2e_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// sendArchive sends an archive for a project as UploadContext wants it, and counts what
// it sent.
func (s *stack) sendArchive(t *testing.T, project string, archive io.Reader, digest string) (*builderv1.UploadContextResponse, int64, error) {
	t.Helper()
	stream := labtest.Must(s.api.UploadContext(labtest.Context(t, 2*time.Minute)))(t)
	header := &builderv1.UploadHeader{Project: project, Digest: digest}
	err := stream.Send(&builderv1.UploadContextRequest{Piece: &builderv1.UploadContextRequest_Header{Header: header}})
	var sent int64
	piece := make([]byte, 512<<10)
	for err == nil {
		n, readErr := io.ReadFull(archive, piece)
		if n > 0 {
			err = stream.Send(&builderv1.UploadContextRequest{Piece: &builderv1.UploadContextRequest_Data{Data: piece[:n]}})
			sent += int64(n)
		}
		if readErr != nil {
			break
		}
	}
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: the answer is there already
		return nil, sent, err
	}
	res, err := stream.CloseAndRecv()
	return res, sent, err
}

// stored sends an archive that must be taken, for the default project.
func (s *stack) stored(t *testing.T, archive io.Reader, digest string) *builderv1.UploadContextResponse {
	t.Helper()
	return s.storedFor(t, "default", archive, digest)
}

// storedFor sends an archive that must be taken.
func (s *stack) storedFor(t *testing.T, project string, archive io.Reader, digest string) *builderv1.UploadContextResponse {
	t.Helper()
	res, _, err := s.sendArchive(t, project, archive, digest)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// tarOf is an archive of files, in the order of their names' coming.
func tarOf(t *testing.T, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.PAXRecords["KILN.content"]
		h.PAXRecords, h.Size = nil, int64(len(content))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		labtest.Must(io.WriteString(w, content))(t)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// entry is a regular file of an archive.
func entry(name, content string) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 0), PAXRecords: map[string]string{"KILN.content": content}}
}

// zeros is an archive of one file of so many zero bytes, packed.
func zeros(t *testing.T, size int64, pack func(io.Writer) io.WriteCloser) []byte {
	t.Helper()
	var b bytes.Buffer
	packed := pack(&b)
	w := tar.NewWriter(packed)
	if err := w.WriteHeader(&tar.Header{Name: "zeros", Size: size, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for range size >> 20 {
		labtest.Must(w.Write(block))(t)
	}
	if err := errors.Join(w.Close(), packed.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }

func zstded(w io.Writer) io.WriteCloser {
	packed, _ := zstd.NewWriter(w)
	return packed
}

// onDisk lists the regular files below a directory, and their sizes.
func onDisk(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			info, err := entry.Info()
			if err != nil {
				return err
			}
			fmt.Fprintln(&b, path, info.Size())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// manyEntries is an archive of ten million empty files that is made as it is read.
func manyEntries() io.Reader {
	r, w := io.Pipe()
	go func() {
		archive := tar.NewWriter(w)
		var err error
		for i := 0; i < 10_000_000 && err == nil; i++ {
			err = archive.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/f%d", i/1000, i), Mode: 0o644})
		}
		_ = w.CloseWithError(errors.Join(err, io.EOF))
	}()
	return r
}

// What is no context is refused, each with its reason, and nothing of it is left.
func TestBadArchivesAreRefusedAndLeaveNothing(t *testing.T) {
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{
		Contexts: &configv1.ContextsConfig{MaxEntries: 100_000, MaxBytes: 1 << 30, MaxDepth: 20},
	}})
	good := tarOf(t, entry("a", "content"), entry("b/c", "more"))
	dir := filepath.Join(s.Builder.State, "contexts")
	s.stored(t, bytes.NewReader(good), "")
	before := onDisk(t, dir)
	link := func(name, target string) *tar.Header {
		return &tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}
	}
	special := func(kind byte) []byte {
		return tarOf(t, &tar.Header{Name: "special", Typeflag: kind})
	}
	huge := manyEntries()
	for name, c := range map[string]struct {
		archive io.Reader
		digest  string
		code    codes.Code
		reason  string
	}{
		"dot dot":        {bytes.NewReader(tarOf(t, entry("../x", "x"))), "", codes.InvalidArgument, "ARCHIVE_INVALID"},
		"absolute":       {bytes.NewReader(tarOf(t, entry("/etc/x", "x"))), "", codes.InvalidArgument, "ARCHIVE_INVALID"},
		"link out":       {bytes.NewReader(tarOf(t, link("l", "../../etc/passwd"))), "", codes.InvalidArgument, "ARCHIVE_INVALID"},
		"absolute link":  {bytes.NewReader(tarOf(t, link("l", "/etc/passwd"))), "", codes.InvalidArgument, "ARCHIVE_INVALID"},
		"through a link": {bytes.NewReader(tarOf(t, link("l", "b"), entry("l/x", "x"))), "", codes.InvalidArgument, "ARCHIVE_INVALID"},
		"hard link":      {bytes.NewReader(tarOf(t, &tar.Header{Name: "h", Linkname: "/etc/passwd", Typeflag: tar.TypeLink})), "", codes.InvalidArgument, "ARCHIVE_INVALID"},
		"device":         {bytes.NewReader(special(tar.TypeChar)), "", codes.InvalidArgument, "ARCHIVE_INVALID"},
		"pipe":           {bytes.NewReader(special(tar.TypeFifo)), "", codes.InvalidArgument, "ARCHIVE_INVALID"},
		"cut short":      {bytes.NewReader(good[:700]), "", codes.InvalidArgument, "ARCHIVE_INVALID"},
		"no tar":         {strings.NewReader(strings.Repeat("no tar ", 1000)), "", codes.InvalidArgument, "ARCHIVE_INVALID"},
		"empty":          {strings.NewReader(""), "", codes.InvalidArgument, "ARCHIVE_INVALID"},
		"wrong digest":   {bytes.NewReader(tarOf(t, entry("new", "new"))), "sha256:" + strings.Repeat("a", 64), codes.InvalidArgument, "DIGEST_MISMATCH"},
		"gzip bomb":      {bytes.NewReader(zeros(t, 128<<20, gzipped)), "", codes.ResourceExhausted, "LIMIT_REACHED"},
		"zstd bomb":      {bytes.NewReader(zeros(t, 128<<20, zstded)), "", codes.ResourceExhausted, "LIMIT_REACHED"},
		"too deep":       {bytes.NewReader(tarOf(t, entry(strings.Repeat("d/", 30)+"f", "x"))), "", codes.ResourceExhausted, "LIMIT_REACHED"},
		"ten million":    {huge, "", codes.ResourceExhausted, "LIMIT_REACHED"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := s.sendArchive(t, "default", c.archive, c.digest)
			refused(t, err, c.code, c.reason, "")
			labtest.Eventually(t, 5*time.Second, "nothing of it is left", func() bool { return onDisk(t, dir) == before })
		})
	}
	if r, ok := huge.(io.Closer); ok {
		_ = r.Close()
	}
	if peak := peakMemory(t, s.Builder.PID()); peak > 128<<20 {
		t.Errorf("the builder took %d MiB", peak>>20)
	}
}

// The same content is stored once, whatever the archive's order and packing; an
// archive that is here already does not come again.
func TestUploadsOfTheSameContent(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	big := strings.Repeat("0123456789abcdef", 1<<17) // 2 MiB
	archive := tarOf(t, entry("a", big), entry("b", "other"))
	first := s.stored(t, bytes.NewReader(archive), "")
	dir := filepath.Join(s.Builder.State, "contexts")
	before := onDisk(t, dir)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	labtest.Must(w.Write(tarOf(t, entry("b", "other"), entry("a", big))))(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	again := s.stored(t, &packed, "")
	if again.GetDigest() != first.GetDigest() || again.GetFiles() != 2 || again.GetSizeBytes() != int64(len(big)+5) {
		t.Errorf("%v and then %v", first, again)
	}
	if after := onDisk(t, dir); after != before {
		t.Errorf("stored twice:\n%s\nafter\n%s", before, after)
	}
	shared := s.stored(t, bytes.NewReader(tarOf(t, entry("a", big), entry("c", "third"))), "")
	if shared.GetDigest() == first.GetDigest() {
		t.Error("another context has the same digest")
	}
	if n := strings.Count(onDisk(t, dir), fmt.Sprintf(" %d\n", len(big))); n != 1 {
		t.Errorf("the large file is stored %d times", n)
	}

	sum := sha256.Sum256(archive)
	announced := "sha256:" + hex.EncodeToString(sum[:])
	s.stored(t, bytes.NewReader(archive), announced)
	res, sent, err := s.sendArchive(t, "default", io.MultiReader(bytes.NewReader(archive[:512]), stalling{}), announced)
	if err != nil || res.GetDigest() != first.GetDigest() || sent > 8<<20 {
		t.Errorf("an archive that is here already: %v after %d bytes, %v", res, sent, err)
	}
	s.restart(t)
	spec := &builderv1.BuildSpec{
		Context:    &builderv1.Context{Kind: &builderv1.Context_Uploaded{Uploaded: &builderv1.UploadedContext{Digest: first.GetDigest()}}},
		Dockerfile: dockerfile("FROM scratch\nCOPY b /b\n").GetDockerfile(), Outputs: push(s.ref("uploaded")),
	}
	s.succeed(t, spec)
	if got := file(t, s.ref("uploaded"), "", "/b"); got != "other" {
		t.Errorf("/b is %q", got)
	}
	spec.GetContext().GetUploaded().Digest = "sha256:" + strings.Repeat("0", 64)
	refused(t, s.build(t, spec).err, codes.NotFound, "NOT_FOUND", "")
}

// stalling is the rest of an archive that nobody needs: it comes slowly.
type stalling struct{}

func (stalling) Read(p []byte) (int, error) {
	time.Sleep(50 * time.Millisecond)
	clear(p)
	return len(p), nil
}

// Only what changed since the project's last build travels to the daemon; and a
// file of the same size and second, but other content, has changed.
func TestOnlyChangesTravelToTheDaemon(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	proxy := labtest.Must(l.StartProxy(daemon.Addr))(t)
	builder := labtest.Must(l.StartBuilder(ctx, lab.BuilderConfig(nil, "tcp://"+proxy.Addr, registry.Addr), lab.ServiceOptions{}))(t)
	s := &stack{Stack: &lab.Stack{Registry: registry, Buildkitd: daemon, Builder: builder}, lab: l, api: labtest.Must(dial(l, builder.Addr))(t)}

	headers := func(changed string) []*tar.Header {
		all := []*tar.Header{entry("Dockerfile", "FROM scratch\nCOPY . /\n"), entry(".dockerignore", "ignored\n"), entry("ignored", unique())}
		for i := range 200 {
			content := strings.Repeat(fmt.Sprintf("%08d", i), 4096) // 32 KiB
			if i == 100 {
				content = changed + content[len(changed):]
			}
			all = append(all, entry(fmt.Sprintf("f%03d", i), content))
		}
		return all
	}
	bytesOf := func(changed string) int64 {
		up := s.storedFor(t, "travel", bytes.NewReader(tarOf(t, headers(changed)...)), "")
		start := proxy.Bytes()
		s.succeed(t, &builderv1.BuildSpec{
			Project: "travel", Outputs: push(s.ref("travel")),
			Context: &builderv1.Context{Kind: &builderv1.Context_Uploaded{Uploaded: &builderv1.UploadedContext{Digest: up.GetDigest()}}},
		})
		if got := file(t, s.ref("travel"), "", "/f100"); got[:len(changed)] != changed {
			t.Errorf("/f100 begins with %q, want %q", got[:len(changed)], changed)
		}
		return proxy.Bytes() - start
	}
	first, second := bytesOf("aaaa"), bytesOf("bbbb")
	if first < 6<<20 || second > 1<<20 {
		t.Errorf("%d bytes for the first build, %d after one changed file of 32 KiB", first, second)
	}
}

// Content that is lost or damaged on the builder's disk fails the build at once, with
// its reason: the daemon must neither build with what is not the file nor wait for
// it. Sent again, the context is whole.
func TestLostContentFailsTheBuild(t *testing.T) {
	s := sharedStack(t)
	for name, damage := range map[string]func(path string) error{
		"missing":   os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 10) },
		"changed":   func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("x"), 1000), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			content := strings.Repeat(unique(), 1000)[:1000]
			archive := tarOf(t, entry("Dockerfile", "FROM scratch\nCOPY . /\n"), entry("file", content))
			sum := sha256.Sum256([]byte(content))
			digits := hex.EncodeToString(sum[:])
			up := s.storedFor(t, "lost-"+name, bytes.NewReader(archive), "")
			if err := damage(filepath.Join(s.Builder.State, "contexts", "blobs/sha256", digits[:2], digits)); err != nil {
				t.Fatal(err)
			}
			spec := &builderv1.BuildSpec{
				Project: "lost-" + name,
				Context: &builderv1.Context{Kind: &builderv1.Context_Uploaded{Uploaded: &builderv1.UploadedContext{Digest: up.GetDigest()}}},
				Outputs: push(s.ref("lost")),
				Timeout: durationpb.New(20 * time.Second),
			}
			if _, failure := s.fail(t, spec); failure.GetReason() != errorsv1.Reason_REASON_NOT_FOUND {
				t.Errorf("reason %s, want NOT_FOUND", failure.GetReason())
			}
			again := s.storedFor(t, "lost-"+name, bytes.NewReader(archive), "")
			if again.GetDigest() != up.GetDigest() {
				t.Errorf("digest %s, then %s", up.GetDigest(), again.GetDigest())
			}
			s.succeed(t, spec)
			if got := file(t, s.ref("lost"), "", "/file"); got != content {
				t.Errorf("built with %q", got)
			}
		})
	}
}
