package contextstore_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/testkit"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

func sweep(t *testing.T, s *contextstore.Store) int64 {
	t.Helper()
	freed, err := s.Sweep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return freed
}

func has(s *contextstore.Store, info contextstore.Info) bool {
	tree, err := s.Open(project, info.Digest)
	if err != nil {
		return false
	}
	return tree.Close() == nil
}

// A context goes when it was not used for KeepAge; a use counts from then on, also
// for the next process; what is open stays; and files go with their last context.
func TestSweepByAge(t *testing.T) {
	dir := t.TempDir()
	at := &clock{now: start}
	s := open(t, dir, limits(), at.Now)
	shared := item{Name: "shared", Body: "shared"}
	old := put(t, s, tarOf(t, shared, item{Name: "old", Body: "old"}))
	used := put(t, s, tarOf(t, shared, item{Name: "used", Body: "used"}))
	held := put(t, s, tarOf(t, item{Name: "held", Body: "held"}))
	if want := start.Add(48 * time.Hour); !old.Expires.Equal(want) {
		t.Errorf("expires %s, want %s", old.Expires, want)
	}
	tree, err := s.Open(project, held.Digest)
	if err != nil {
		t.Fatal(err)
	}
	at.Add(47 * time.Hour)
	if info, err := s.Use(project, used.Digest); err != nil || !info.Expires.Equal(start.Add(95*time.Hour)) {
		t.Errorf("%+v, %v", info, err)
	}
	at.Add(2 * time.Hour)
	if freed := sweep(t, s); freed < int64(len("old")) || blobs(t, dir) != 3 {
		t.Errorf("freed %d bytes; %d contents are left, want 3", freed, blobs(t, dir))
	}
	if _, err := s.Use(project, old.Digest); fault.KindOf(err) != fault.NotFound {
		t.Errorf("the old one: %v", err)
	}
	if got, err := readFile(tree, "held"); err != nil || string(got) != "held" {
		t.Errorf("the open one: %q, %v", got, err)
	}
	if err := tree.Close(); err != nil {
		t.Error(err)
	}
	sweep(t, s)
	again := open(t, dir, limits(), at.Now)
	if has(again, held) || !has(again, used) || blobs(t, dir) != 2 {
		t.Errorf("after a restart %d contents are left, want 2", blobs(t, dir))
	}
}

// Where KeepBytes has no room, the least recently used goes first. What contexts share
// counts once.
func TestPut_MakesRoomByLastUse(t *testing.T) {
	dir := t.TempDir()
	at := &clock{now: start}
	bounds := limits()
	bounds.KeepBytes = 19_000 // four files of one block and their manifests
	s := open(t, dir, bounds, at.Now)
	var all []contextstore.Info
	for i := range 4 {
		at.Add(time.Minute)
		all = append(all, put(t, s, tarOf(t, item{Name: "own", Body: strings.Repeat(itoa(i), 500)}, item{Name: "shared", Body: strings.Repeat("s", 500)})))
	}
	if has(s, all[0]) || !has(s, all[3]) {
		t.Fatalf("left: the oldest %t, the newest %t", has(s, all[0]), has(s, all[3]))
	}
	at.Add(time.Minute)
	if _, err := s.Use(project, all[1].Digest); err != nil { // the oldest that is left
		t.Fatal(err)
	}
	put(t, s, tarOf(t, item{Name: "own", Body: strings.Repeat("n", 500)}))
	sweep(t, s)
	if has(s, all[0]) || !has(s, all[1]) || has(s, all[2]) {
		t.Errorf("left: %t %t %t, want the second only", has(s, all[0]), has(s, all[1]), has(s, all[2]))
	}
}

// Content that is not what was stored is not served, and can be sent again.
func TestDamagedContent(t *testing.T) {
	archive := tarOf(t, item{Name: "a", Body: strings.Repeat("a", 400_000)})
	for name, damage := range map[string]func(path string) error{
		"gone":    os.Remove,
		"shorter": func(path string) error { return os.Truncate(path, 10) },
		"zeros": func(path string) error {
			return os.WriteFile(path, make([]byte, 400_000), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := newStore(t, limits())
			info := put(t, s, archive)
			found, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*/*"))
			if err != nil || len(found) != 1 {
				t.Fatal(found, err)
			}
			if err := damage(found[0]); err != nil {
				t.Fatal(err)
			}
			tree, err := s.Open(project, info.Digest)
			if err != nil {
				t.Fatal(err)
			}
			_, err = readFile(tree, "a")
			_ = wantFault(t, err, fault.NotFound, "NOT_FOUND")
			if err := tree.Close(); err != nil {
				t.Error(err)
			}
			if has(s, info) {
				t.Error("the context is still there")
			}
			put(t, s, archive)
			if got := describe(t, s, info.Digest); !strings.Contains(got, "aaaa") {
				t.Errorf("sent again: %.100s", got)
			}
		})
	}
}

// An archive that was announced by the digest of its bytes is known by it, for as
// long as its context is there, and also to the next process.
func TestKnown(t *testing.T) {
	dir := t.TempDir()
	at := &clock{now: start}
	s := open(t, dir, limits(), at.Now)
	archive := good(t)
	announced := digestOf(archive)
	put(t, s, archive)
	if _, ok := s.Known(project, announced); ok {
		t.Error("known, though nobody told its digest")
	}
	info, err := s.Put(t.Context(), project, strings.NewReader(string(archive)), announced)
	if err != nil {
		t.Fatal(err)
	}
	for name, store := range map[string]*contextstore.Store{"this": s, "the next": open(t, dir, limits(), at.Now)} {
		if known, ok := store.Known(project, announced); !ok || known != info {
			t.Errorf("%s process: %+v, %t", name, known, ok)
		}
		for _, other := range []string{"", "sha256:", digestOf([]byte("other")), info.Digest} {
			if _, ok := store.Known(project, other); ok {
				t.Errorf("%s process: %q is known", name, other)
			}
		}
	}
	at.Add(49 * time.Hour)
	sweep(t, s)
	if _, ok := s.Known(project, announced); ok {
		t.Error("known, though the context is gone")
	}
	if left, err := os.ReadDir(filepath.Join(dir, "fetched")); err != nil || len(left) != 0 {
		t.Errorf("remembered: %v, %v", left, err)
	}
}

// Any number of archives hold the same context: only so many are remembered.
func TestKnownIsBounded(t *testing.T) {
	dir := t.TempDir()
	info := put(t, open(t, dir, limits(), time.Now), good(t))
	for i := range 4096 {
		name := filepath.Join(dir, "fetched", fmt.Sprintf("%064x", i))
		if err := os.WriteFile(name, fmt.Appendf(nil, `{"Context":%q}`, info.Digest), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir, limits(), time.Now)
	if _, err := s.Put(t.Context(), project, strings.NewReader(string(good(t))), digestOf(good(t))); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "fetched"))
	if err != nil || len(left) > 4096 {
		t.Errorf("%d are remembered, %v", len(left), err)
	}
	if _, ok := s.Known(project, digestOf(good(t))); !ok {
		t.Error("the newest is forgotten")
	}
}

// A process that was killed as it gave contents their names, before the manifest
// had its own, leaves them to the next one, which removes them.
func TestOpenRemovesWhatIsHalfDone(t *testing.T) {
	dir := t.TempDir()
	put(t, open(t, dir, limits(), time.Now), good(t))
	before := onDisk(t, dir)
	for _, name := range []string{
		"blobs/sha256/ab/ab" + strings.Repeat("0", 62), "incoming/STAGE/part", "incoming/STAGE/" + strings.Repeat("0", 64),
	} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte("half"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir, limits(), time.Now)
	if after := onDisk(t, dir); after != before {
		t.Errorf("left:\n%s", after)
	}
}

// A process that is killed at any moment leaves whole contexts, and nothing else.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for range 10 {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
		child.Env = append(os.Environ(), putInto+"="+dir)
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, 20*time.Second, func() bool { return len(contexts(t, dir)) > 0 })
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond) // any moment
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := child.Wait(); !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the child ended by itself: %v", err)
		}
		s := open(t, dir, limits(), time.Now)
		contents := make(map[contextstore.Digest]bool)
		for _, digest := range contexts(t, dir) {
			describe(t, s, digest)
			tree, err := s.Open(project, digest)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range tree.Entries() {
				contents[e.Digest] = true
			}
			if err := tree.Close(); err != nil {
				t.Error(err)
			}
		}
		if n := blobs(t, dir); n != len(contents) || n == 0 {
			t.Errorf("%d contents on disk, and contexts have %d", n, len(contents))
		}
		if left, err := fs.ReadDir(os.DirFS(dir), "incoming"); err != nil || len(left) > 0 {
			t.Errorf("left under way: %v, %v", left, err)
		}
	}
}

// contexts lists the digests of those that are stored.
func contexts(t *testing.T, dir string) (digests []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "contexts/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		digests = append(digests, "sha256:"+filepath.Base(name))
	}
	return digests
}
