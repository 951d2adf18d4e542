package contextstore_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// quiet is a log that nobody reads.
var quiet = slog.New(slog.DiscardHandler)

// start is when the clock of each test begins.
var start = time.Unix(1_700_000_000, 0)

// clock is a time that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func limits() contextstore.Limits {
	return contextstore.Limits{
		KeepAge: 48 * time.Hour, KeepBytes: 1 << 40, MaxBytes: 1 << 30, MaxEntries: 100_000, MaxRatio: 200,
		MaxDepth: 128, MaxPathBytes: 4096, FetchTimeout: 10 * time.Second,
	}
}

// open opens a store in a directory, which is closed with the test.
func open(t testing.TB, dir string, limits contextstore.Limits, now func() time.Time) *contextstore.Store {
	t.Helper()
	s, err := contextstore.Open(dir, limits, slog.New(slog.DiscardHandler), now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newStore(t testing.TB, limits contextstore.Limits) (*contextstore.Store, string) {
	t.Helper()
	dir := t.TempDir()
	return open(t, dir, limits, time.Now), dir
}

// item is an entry of a tar: a file unless Type says otherwise.
type item struct {
	Name, Body, Link string
	Type             byte
	Mode             int64
	Time             int64
	Owner            string
	PAX              map[string]string
}

func (i item) header() *tar.Header {
	if i.Type == tar.TypeXGlobalHeader {
		return &tar.Header{Name: i.Name, Typeflag: i.Type, PAXRecords: i.PAX}
	}
	h := &tar.Header{
		Name: i.Name, Linkname: i.Link, Typeflag: i.Type, Mode: i.Mode, ModTime: time.Unix(i.Time, 0),
		Size: int64(len(i.Body)), Uname: i.Owner, PAXRecords: i.PAX,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	return h
}

func tarOf(t testing.TB, items ...item) []byte {
	t.Helper()
	data, err := writeTar(items)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeTar(items []item) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		if err := w.WriteHeader(i.header()); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, i.Body); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func gzipOf(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstdOf(t testing.TB, data []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, opts...)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(data)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digestOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

func put(t testing.TB, s *contextstore.Store, archive []byte) contextstore.Info {
	t.Helper()
	info, err := s.Put(t.Context(), project, bytes.NewReader(archive), "")
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// describe tells all of a context, contents included.
func describe(t testing.TB, s *contextstore.Store, digest string) string {
	t.Helper()
	tree, err := s.Open(project, digest)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tree.Close() }()
	var b strings.Builder
	for _, e := range tree.Entries() {
		fmt.Fprintf(&b, "%s %d %q", e.Mode, e.ModTime, e.Path)
		if e.Target != "" {
			fmt.Fprintf(&b, " -> %q", e.Target)
		}
		if e.Mode.IsRegular() {
			content, err := readFile(tree, e.Path)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, " %q", content)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func readFile(tree *contextstore.Tree, path string) ([]byte, error) {
	f, err := tree.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(f)
	return data, errors.Join(err, f.Close())
}

// onDisk lists all paths below a directory, with sizes of files.
func onDisk(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size := info.Size()
		if d.IsDir() {
			size = 0
		}
		fmt.Fprintf(&b, "%s %d\n", strings.TrimPrefix(path, dir), size)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// blobs counts the stored contents.
func blobs(t testing.TB, dir string) int {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// wantFault fails unless err is a fault of the kind and reason, which has a remedy.
func wantFault(t testing.TB, err error, kind fault.Kind, reason string) *fault.Error {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		t.Fatalf("err = %v, want a fault", err)
	}
	if f.Kind != kind || f.Reason != reason || f.Remedy == "" {
		t.Fatalf("%v %s %q, remedy %q; want %v %s and a remedy", f.Kind, f.Reason, f.Message, f.Remedy, kind, reason)
	}
	return f
}
