package client_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// received is what an upload brought: name to content, "-> target" for a link,
// and "dir" for a directory.
func received(stream builderv1.BuilderService_UploadContextServer) (map[string]string, error) {
	got := map[string]string{}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if first.GetHeader().GetProject() != "web" {
		return nil, fmt.Errorf("the first message is %v", first)
	}
	in := tar.NewReader(&pieces{stream: stream})
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, in)
			return got, err
		}
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(in)
		if err != nil {
			return nil, err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			got[h.Name] = "dir"
		case tar.TypeSymlink:
			got[h.Name] = "-> " + h.Linkname
		default:
			got[h.Name] = string(content)
		}
		if dir := filepath.Dir(strings.TrimSuffix(h.Name, "/")); dir != "." && got[dir+"/"] != "dir" {
			return nil, fmt.Errorf("%s came before its directory", h.Name)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.IsZero() {
			return nil, fmt.Errorf("header %+v", h)
		}
	}
}

// pieces reads an upload as the stream of bytes that it is.
type pieces struct {
	stream builderv1.BuilderService_UploadContextServer
	rest   []byte
}

func (p *pieces) Read(buf []byte) (int, error) {
	for len(p.rest) == 0 {
		req, err := p.stream.Recv()
		if err != nil {
			return 0, err
		}
		if p.rest = req.GetData(); len(p.rest) > 1<<20 {
			return 0, fmt.Errorf("a message of %d bytes", len(p.rest))
		}
	}
	n := copy(buf, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// write makes a directory of files, directories ("…/") and links ("-> …").
func write(t testing.TB, entries map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		file, content := filepath.Join(dir, name), entries[name]
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		target, link := strings.CutPrefix(content, "-> ")
		switch {
		case err != nil:
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(file, 0o755)
		case link:
			err = os.Symlink(target, file)
		default:
			err = os.WriteFile(file, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestUploadDir(t *testing.T) {
	tests := map[string]struct {
		files      map[string]string
		dockerfile string
		want       []string // names of files and links
	}{
		"everything": {
			files: map[string]string{"Dockerfile": "FROM scratch", "a/b/c": "1", "empty/": "", "out": "-> /etc/passwd", "a/up": "-> ../out"},
			want:  []string{"Dockerfile", "a/", "a/b/", "a/b/c", "a/up", "empty/", "out"},
		},
		"what .dockerignore names is left out, but for what BuildKit needs": {
			files: map[string]string{".dockerignore": "*\n!src\nsrc/*.log\n", "Dockerfile": "x", "secret": "x", "src/a.go": "1", "src/b.log": "2", "node_modules/x": "3"},
			want:  []string{".dockerignore", "Dockerfile", "src/", "src/a.go"},
		},
		"an exception within an ignored directory brings its directories": {
			files: map[string]string{".dockerignore": "a\n!a/b/*.txt\n", "a/b/c.txt": "1", "a/b/d": "2", "a/x/y": "3"},
			want:  []string{".dockerignore", "a/", "a/b/", "a/b/c.txt"},
		},
		"an ignored directory is ignored with all in it": {
			files: map[string]string{".dockerignore": "a\n**/tmp\n", "a/b/c": "1", "b/tmp/x": "2", "b/y": "3"},
			want:  []string{".dockerignore", "b/", "b/y"},
		},
		"a Dockerfile with an ignore file of its own": {
			files:      map[string]string{".dockerignore": "x\n", "docker/web": "FROM scratch", "docker/web.dockerignore": "docker\ny\n", "x": "1", "y": "2"},
			dockerfile: "docker/web",
			want:       []string{".dockerignore", "docker/", "docker/web", "docker/web.dockerignore", "x"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := write(t, test.files)
			var got map[string]string
			c, _ := dial(t, &script{upload: func(stream builderv1.BuilderService_UploadContextServer) (err error) {
				if got, err = received(stream); err != nil {
					return err
				}
				return stream.SendAndClose(&builderv1.UploadContextResponse{Digest: "sha256:abc"})
			}})
			var opts []client.UploadOption
			if test.dockerfile != "" {
				opts = append(opts, client.Dockerfile(test.dockerfile))
			}
			up, err := c.UploadDir(t.Context(), "web", dir, opts...)
			if err != nil || up.GetDigest() != "sha256:abc" {
				t.Fatalf("%v, %v", up, err)
			}
			if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, test.want) {
				t.Errorf("%q, want %q", names, test.want)
			}
			for name, content := range got {
				if content != "dir" && content != test.files[name] {
					t.Errorf("%s is %q, want %q", name, content, test.files[name])
				}
			}
		})
	}
}

// An upload begins again when the connection breaks, and the last error is told
// when it always does.
func TestUploadBeginsAgain(t *testing.T) {
	dir := write(t, map[string]string{"Dockerfile": "FROM scratch", "big": strings.Repeat("0123456789abcdef", 1<<17)})
	attempts, good := 0, 3
	var l *listener
	c, ln := dial(t, &script{upload: func(stream builderv1.BuilderService_UploadContextServer) error {
		if attempts++; attempts != good {
			for range 3 {
				if _, err := stream.Recv(); err != nil {
					return err
				}
			}
			l.cut()
			return nil
		}
		if _, err := received(stream); err != nil {
			return err
		}
		return stream.SendAndClose(&builderv1.UploadContextResponse{Digest: "sha256:abc"})
	}})
	l = ln
	if up, err := c.UploadDir(t.Context(), "web", dir); err != nil || up.GetDigest() != "sha256:abc" || attempts != 3 {
		t.Errorf("%v, %v after %d attempts", up, err, attempts)
	}
	attempts, good = 0, 100
	if _, err := c.UploadDir(t.Context(), "web", dir); status.Code(err) != codes.Unavailable || attempts != 5 {
		t.Errorf("%v after %d attempts", err, attempts)
	}
}

// A builder that refuses in the middle is heard, and one that has the content
// already need not be sent the rest.
func TestUploadIsAnsweredEarly(t *testing.T) {
	dir := write(t, map[string]string{"big": strings.Repeat("0123456789abcdef", 1<<20)})
	c, _ := dial(t, &script{upload: func(stream builderv1.BuilderService_UploadContextServer) error {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		return kilnError(t, codes.ResourceExhausted, "LIMIT_REACHED", "raise contexts.max_bytes", 0)
	}})
	if _, err := c.UploadDir(t.Context(), "web", dir); client.Reason(err) != "LIMIT_REACHED" {
		t.Errorf("%v", err)
	}
	c, _ = dial(t, &script{upload: func(stream builderv1.BuilderService_UploadContextServer) error {
		return stream.SendAndClose(&builderv1.UploadContextResponse{Digest: "sha256:abc"})
	}})
	if up, err := c.UploadDir(t.Context(), "web", dir); err != nil || up.GetDigest() != "sha256:abc" {
		t.Errorf("%v, %v", up, err)
	}
}

// What cannot be a context is refused with the name of the entry, without asking
// the builder again.
func TestUploadRefuses(t *testing.T) {
	growing := write(t, map[string]string{"log": strings.Repeat("x", 4<<20)})
	rewritten := write(t, map[string]string{"log": strings.Repeat("x", 4<<20)})
	pipe := write(t, nil)
	if err := syscall.Mkfifo(filepath.Join(pipe, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	badIgnore := write(t, map[string]string{".dockerignore": "a[\n", "a": "1"})
	var uploads atomic.Int32
	c, _ := dial(t, &script{upload: func(stream builderv1.BuilderService_UploadContextServer) error {
		uploads.Add(1)
		for {
			if _, err := stream.Recv(); err != nil {
				return err
			}
			f, err := os.OpenFile(filepath.Join(growing, "log"), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(f, time.Now()); err != nil {
				return err
			}
			if err := errors.Join(f.Close(), os.Chtimes(filepath.Join(rewritten, "log"), time.Time{}, time.Now())); err != nil {
				return err
			}
		}
	}})
	for _, test := range []struct {
		dir, text string
		err       error
	}{
		{growing, "log", client.ErrChanged},
		{rewritten, "log", client.ErrChanged},
		{pipe, "fifo", nil},
		{badIgnore, ".dockerignore", nil},
		{filepath.Join(pipe, "none"), "none", fs.ErrNotExist},
	} {
		uploads.Store(0)
		_, err := c.UploadDir(t.Context(), "web", test.dir)
		if err == nil || !strings.Contains(err.Error(), test.text) || (test.err != nil && !errors.Is(err, test.err)) || uploads.Load() > 1 {
			t.Errorf("%s: %v after %d uploads", test.dir, err, uploads.Load())
		}
	}
}

// A socket is of a process and not of the context.
func TestUploadLeavesSocketsOut(t *testing.T) {
	dir := write(t, map[string]string{"a": "1"})
	t.Chdir(dir) // a socket's path is short
	ln, err := net.Listen("unix", "agent.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	var got map[string]string
	c, _ := dial(t, &script{upload: func(stream builderv1.BuilderService_UploadContextServer) (err error) {
		if got, err = received(stream); err != nil {
			return err
		}
		return stream.SendAndClose(&builderv1.UploadContextResponse{})
	}})
	if _, err := c.UploadDir(t.Context(), "web", dir); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}

// A large context does not fill the memory.
func TestUploadMemory(t *testing.T) {
	dir := write(t, map[string]string{"big": ""})
	const size = 64 << 20
	if err := os.Truncate(filepath.Join(dir, "big"), size); err != nil {
		t.Fatal(err)
	}
	var most uint64
	c, _ := dial(t, &script{upload: func(stream builderv1.BuilderService_UploadContextServer) error {
		total, last := 0, 0
		for {
			req, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return stream.SendAndClose(&builderv1.UploadContextResponse{SizeBytes: int64(total)})
			}
			if err != nil {
				return err
			}
			if total += len(req.GetData()); total-last > 16<<20 {
				last = total
				var stats runtime.MemStats
				runtime.ReadMemStats(&stats)
				most = max(most, stats.HeapInuse)
			}
		}
	}})
	up, err := c.UploadDir(t.Context(), "web", dir)
	if err != nil || up.GetSizeBytes() < size {
		t.Fatalf("%v, %v", up, err)
	}
	if most > 40<<20 { // of both sides, with the collector's slack
		t.Errorf("%d MiB of heap in use", most>>20)
	}
}

// Upload sends a tar as it is, once.
func TestUpload(t *testing.T) {
	var packed bytes.Buffer
	gz := gzip.NewWriter(&packed)
	if _, err := gz.Write(bytes.Repeat([]byte("0123456789"), 1<<16)); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	var got []byte
	c, _ := dial(t, &script{upload: func(stream builderv1.BuilderService_UploadContextServer) (err error) {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		if got, err = io.ReadAll(&pieces{stream: stream}); err != nil {
			return err
		}
		return stream.SendAndClose(&builderv1.UploadContextResponse{})
	}})
	if _, err := c.Upload(t.Context(), "web", bytes.NewReader(packed.Bytes())); err != nil || !bytes.Equal(got, packed.Bytes()) {
		t.Errorf("%d of %d bytes, %v", len(got), packed.Len(), err)
	}
	mine := errors.New("mine")
	if _, err := c.Upload(t.Context(), "web", io.MultiReader(strings.NewReader("x"), failing{mine})); !errors.Is(err, mine) {
		t.Errorf("%v", err)
	}
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error)  { return 0, f.error }
func (f failing) Write([]byte) (int, error) { return 0, f.error }

// A download goes on where it broke.
func TestDownloadResumes(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 1000)
	var l *listener
	var streams atomic.Int32
	c, ln := dial(t, &script{download: func(req *builderv1.DownloadArtifactRequest, stream builderv1.BuilderService_DownloadArtifactServer) error {
		odd := streams.Add(1)%2 == 1
		rest := content[req.GetOffset():]
		for n := 0; len(rest) > 0; n++ {
			if n == 7 && !odd {
				l.cut()
			}
			if n == 7 {
				return status.Error(codes.Unavailable, "shutting down")
			}
			piece := rest[:min(137, len(rest))]
			if err := stream.Send(&builderv1.DownloadArtifactResponse{Data: piece}); err != nil {
				return err
			}
			rest = rest[len(piece):]
		}
		return nil
	}})
	l = ln
	for _, offset := range []int64{0, 4321, int64(len(content))} {
		var got bytes.Buffer
		n, err := c.DownloadFrom(t.Context(), "b1", "image.tar", offset, &got)
		if err != nil || n != int64(got.Len()) || !bytes.Equal(got.Bytes(), content[offset:]) {
			t.Errorf("from %d: %d bytes, %v", offset, n, err)
		}
	}
	if streams.Load() < 5 {
		t.Errorf("%d streams: nothing broke", streams.Load())
	}
	streams.Store(0)
	full := status.Error(codes.Unavailable, "disk full")
	if _, err := c.Download(t.Context(), "b1", "image.tar", failing{full}); !errors.Is(err, full) || streams.Load() != 1 {
		t.Errorf("%v after %d streams", err, streams.Load())
	}
}
