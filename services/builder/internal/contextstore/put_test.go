package contextstore_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/testkit"
)

func TestPut(t *testing.T) {
	clock := &clock{now: start}
	dir := t.TempDir()
	s := open(t, dir, limits(), clock.Now)
	info := put(t, s, good(t))
	want := "-rw-r--r-- 5 \"Dockerfile\" \"FROM scratch\\n\"\n" +
		"drwxr-xr-x 0 \"deep\"\n" +
		"drwxr-xr-x 0 \"deep/down\"\n" +
		"-rw-r--r-- 0 \"deep/down/file\" \"y\"\n" +
		"-rw-r--r-- 0 \"empty\" \"\"\n" +
		"drwxr-x--- 7 \"src\"\n" +
		"urwxr-xr-x 0 \"src/again\" \"" + strings.Repeat("x", 1000) + "\"\n" +
		"Lrwxrwxrwx 0 \"src/link\" -> \"../Dockerfile\"\n" +
		"urwxr-xr-x 0 \"src/run\" \"" + strings.Repeat("x", 1000) + "\"\n"
	if got := describe(t, s, info.Digest); got != want {
		t.Errorf("stored\n%s\nwant\n%s", got, want)
	}
	if info.Files != 5 || info.Bytes != 13+1000+1000+1 || !info.Expires.Equal(start.Add(48*time.Hour)) {
		t.Errorf("info = %+v", info)
	}
	if n := blobs(t, dir); n != 4 {
		t.Errorf("%d contents on disk, want 4: what is the same is stored once", n)
	}
	again := open(t, dir, limits(), clock.Now)
	if got, err := again.Use(project, info.Digest); err != nil || got != info {
		t.Errorf("after opening again: %+v, %v; want %+v", got, err, info)
	}
}

// Names in the archive order that the directory separator upsets.
func TestEntriesAreInTransferOrder(t *testing.T) {
	s, _ := newStore(t, limits())
	info := put(t, s, tarOf(t, item{Name: "a.b"}, item{Name: "a/b"}, item{Name: "a-b/c"}, item{Name: "a!"}, item{Name: "b"}))
	tree, err := s.Open(project, info.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tree.Close() }()
	var names []string
	for _, e := range tree.Entries() {
		names = append(names, e.Path)
	}
	if got := strings.Join(names, " "); got != "a a/b a! a-b a-b/c a.b b" {
		t.Errorf("order %s", got)
	}
}

func TestWhatMakesTheDigest(t *testing.T) {
	s, _ := newStore(t, limits())
	base := []item{{Name: "d/", Type: tar.TypeDir, Mode: 0o755, Time: 3}, {Name: "d/a", Body: "1", Time: 3}, {Name: "l", Type: tar.TypeSymlink, Link: "d"}}
	digest := func(change func([]item) []item) string {
		return put(t, s, tarOf(t, change(append([]item(nil), base...))...)).Digest
	}
	same := digest(func(i []item) []item { return i })
	for name, c := range map[string]struct {
		change func([]item) []item
		same   bool
	}{
		"order":       {func(i []item) []item { return []item{i[2], i[1], i[0]} }, true},
		"owner":       {func(i []item) []item { i[1].Owner = "root"; return i }, true},
		"names":       {func(i []item) []item { i[1].Name = "./d//a"; return i }, true},
		"the root":    {func(i []item) []item { return append(i, item{Name: ".", Type: tar.TypeDir}) }, true},
		"last wins":   {func(i []item) []item { return append([]item{{Name: "d/a", Body: "other", Mode: 0o600}}, i...) }, true},
		"mode":        {func(i []item) []item { i[1].Mode = 0o600; return i }, false},
		"setuid":      {func(i []item) []item { i[1].Mode = 0o4644; return i }, false},
		"time":        {func(i []item) []item { i[1].Time = 4; return i }, false},
		"dir mode":    {func(i []item) []item { i[0].Mode = 0o700; return i }, false},
		"content":     {func(i []item) []item { i[1].Body = "2"; return i }, false},
		"target":      {func(i []item) []item { i[2].Link = "d/a"; return i }, false},
		"one more":    {func(i []item) []item { return append(i, item{Name: "x"}) }, false},
		"another end": {func(i []item) []item { return i[:2] }, false},
	} {
		if got := digest(c.change); (got == same) != c.same {
			t.Errorf("%s: same digest %t, want %t", name, got == same, c.same)
		}
	}
	for name, archive := range map[string][]byte{
		"gzip": gzipOf(t, tarOf(t, base...)), "zstd": zstdOf(t, tarOf(t, base...)),
		"padding": append(tarOf(t, base...), make([]byte, 10240)...),
	} {
		if got := put(t, s, archive).Digest; got != same {
			t.Errorf("%s: another digest", name)
		}
	}
}

func TestPutChecksTheDigestOfTheBytes(t *testing.T) {
	s, _ := newStore(t, limits())
	for name, archive := range map[string][]byte{"plain": good(t), "gzip": gzipOf(t, good(t)), "zstd": zstdOf(t, good(t))} {
		if _, err := s.Put(t.Context(), project, bytes.NewReader(archive), digestOf(archive)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// tree is a random tree of files, by path, and the items that make it.
func tree(t *rapid.T) []item {
	name := rapid.StringMatching(`[a-c][!-.0-~é]{0,3}`)
	used := map[string]bool{"": true}
	dirs := []string{""}
	var items []item
	for range rapid.IntRange(0, 12).Draw(t, "entries") {
		path := rapid.SampledFrom(dirs).Draw(t, "in") + name.Draw(t, "name")
		if used[path] {
			continue
		}
		used[path] = true
		i := item{Name: path, Mode: rapid.Int64Range(1, 0o7777).Draw(t, "mode"), Time: rapid.Int64Range(-maxTime, maxTime).Draw(t, "time")}
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			i.Type, i.Name = tar.TypeDir, path+"/"
			dirs = append(dirs, path+"/")
		case 1:
			i.Type, i.Link = tar.TypeSymlink, name.Draw(t, "target")
		default:
			i.Body = rapid.StringN(0, 20, 40).Draw(t, "content")
		}
		items = append(items, i)
	}
	return items
}

const maxTime = 9_000_000_000

func TestSameFilesAreTheSameContext(t *testing.T) {
	s, _ := newStore(t, limits())
	rapid.Check(t, func(rt *rapid.T) {
		items := tree(rt)
		first := put(t, s, tarOf(t, items...))
		second := append([]item(nil), items...)
		shuffle := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0)) //nolint:gosec // for a test
		shuffle.Shuffle(len(second), func(i, j int) { second[i], second[j] = second[j], second[i] })
		archive := tarOf(t, second...)
		switch rapid.IntRange(0, 2).Draw(rt, "compression") {
		case 1:
			archive = gzipOf(t, archive)
		case 2:
			archive = zstdOf(t, archive)
		}
		if again := put(t, s, archive); again.Digest != first.Digest {
			rt.Fatalf("another digest for the same files: %+v", items)
		}
		open, err := s.Open(project, first.Digest)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = open.Close() }()
		if len(open.Entries()) != len(items) {
			rt.Fatalf("%d entries of %d", len(open.Entries()), len(items))
		}
		for _, i := range items {
			if i.Type != 0 {
				continue
			}
			if got, err := readFile(open, i.Name); err != nil || string(got) != i.Body {
				rt.Fatalf("%q: %q, %v; want %q", i.Name, got, err, i.Body)
			}
		}
	})
}

func TestPutAtOnce(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	s, dir := newStore(t, limits())
	archives := make([][]byte, 4)
	for i := range archives {
		archives[i] = zstdOf(t, tarOf(t, item{Name: "same", Body: strings.Repeat("s", 300_000)}, item{Name: "own", Body: itoa(i)}))
	}
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			info, err := s.Put(t.Context(), project, bytes.NewReader(archives[i%len(archives)]), "")
			if err != nil {
				t.Error(err)
				return
			}
			tree, err := s.Open(project, info.Digest)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = tree.Close() }()
			if _, err := readFile(tree, "same"); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := s.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := blobs(t, dir); n != 5 {
		t.Errorf("%d contents on disk, want 5", n)
	}
}

// What is open is whole, however much is swept meanwhile.
func TestPutAndSweepAtOnce(t *testing.T) {
	l := limits()
	l.KeepAge = time.Nanosecond
	s, dir := newStore(t, l)
	empty := onDisk(t, dir)
	archive := tarOf(t, item{Name: "large", Body: strings.Repeat("s", 300_000)}, item{Name: "a", Body: "a"}, item{Name: "b", Body: "b"})
	var putting, sweeping sync.WaitGroup
	done := make(chan struct{})
	sweeping.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := s.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	var opened atomic.Int64
	for range 4 {
		putting.Go(func() {
			for range 50 {
				info, err := s.Put(t.Context(), project, bytes.NewReader(archive), "")
				if err != nil {
					t.Error(err)
					return
				}
				tree, err := s.Open(project, info.Digest)
				if err != nil {
					continue // swept
				}
				opened.Add(1)
				for _, e := range tree.Entries() {
					if _, err := readFile(tree, e.Path); err != nil {
						t.Error(err)
					}
				}
				if err := tree.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	putting.Wait()
	close(done)
	sweeping.Wait()
	sweep(t, s)
	if after := onDisk(t, dir); after != empty {
		t.Errorf("left behind:\n%s", after)
	}
	if opened.Load() == 0 {
		t.Error("nothing was opened, so nothing was proven")
	}
}

var errAway = errors.New("the sender went away")

func TestPutEndsWithItsSender(t *testing.T) {
	s, dir := newStore(t, limits())
	before := onDisk(t, dir)
	whole := tarOf(t, item{Name: "a", Body: strings.Repeat("a", 600_000)}, item{Name: "b", Body: "b"})
	for name, archive := range map[string][]byte{"plain": whole, "gzip": gzipOf(t, whole), "zstd": zstdOf(t, whole)} {
		for _, part := range []int{0, 3, len(archive) / 2, len(archive)} {
			broken := io.MultiReader(bytes.NewReader(archive[:part]), errReader{})
			if _, err := s.Put(t.Context(), project, broken, ""); !errors.Is(err, errAway) {
				t.Errorf("%s, %d bytes: %v, want the sender's error", name, part, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancelling := io.MultiReader(bytes.NewReader(archive[:len(archive)/2]), callReader(cancel), bytes.NewReader(archive[len(archive)/2:]))
		if _, err := s.Put(ctx, project, cancelling, ""); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, cancelled: %v", name, err)
		}
	}
	if after := onDisk(t, dir); after != before {
		t.Errorf("left behind:\n%s", after)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errAway }

type callReader func()

func (c callReader) Read([]byte) (int, error) { c(); return 0, io.EOF }

// entries yields a tar of so many entries, without holding them.
type entries struct {
	left   int
	header [512]byte
	rest   []byte
}

func (e *entries) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		if e.left == 0 {
			return 0, io.EOF
		}
		e.left--
		copy(e.header[:100], "file-"+itoa(e.left)+"\x00")
		e.rest = checksummed(e.header[:])
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

func TestTenMillionEntries(t *testing.T) {
	l := limits()
	l.MaxEntries = 50_000
	s, dir := newStore(t, l)
	before := onDisk(t, dir)
	stream := &entries{left: 10_000_000}
	copy(stream.header[:], tarOf(t, item{Name: "x"}))
	began := time.Now()
	_, err := s.Put(t.Context(), project, stream, "")
	f := wantFault(t, err, fault.ResourceExhausted, "LIMIT_REACHED")
	if f.Metadata["limit"] != "contexts.max_entries" {
		t.Errorf("names %q", f.Metadata["limit"])
	}
	t.Logf("refused after %s and %d entries", time.Since(began), 10_000_000-stream.left)
	if after := onDisk(t, dir); after != before {
		t.Error("left behind")
	}
}

func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("kiln-test", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatalf("mounting a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s := open(t, filepath.Join(dir, "contexts"), limits(), time.Now)
	before := onDisk(t, dir)
	large := item{Name: "large", Body: strings.Repeat("l", 3<<20)}
	small := make([]item, 100)
	for i := range small {
		small[i] = item{Name: itoa(i), Body: strings.Repeat(itoa(i%10), 100_000) + itoa(i)}
	}
	for name, archive := range map[string][]byte{"large": tarOf(t, large), "small": tarOf(t, small...)} {
		_, err := s.Put(t.Context(), project, bytes.NewReader(archive), "")
		_ = wantFault(t, err, fault.ResourceExhausted, "DISK_FULL")
		if after := onDisk(t, dir); after != before {
			t.Errorf("%s: left behind\n%s", name, after)
		}
	}
	put(t, s, good(t)) // it heals
}
