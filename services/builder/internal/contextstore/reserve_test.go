package contextstore_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// random is an archive of one file of bytes that no other archive has.
func random(t testing.TB, seed uint64, bytes int) []byte {
	t.Helper()
	body := make([]byte, bytes)
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = source.Read(body)
	return tarOf(t, item{Name: "f", Body: string(body)})
}

func putFor(s *contextstore.Store, t testing.TB, project string, archive []byte) (contextstore.Info, error) {
	t.Helper()
	return s.Put(t.Context(), project, bytes.NewReader(archive), "")
}

func hasFor(s *contextstore.Store, project string, info contextstore.Info) bool {
	_, err := s.Use(project, info.Digest)
	return err == nil
}

func quotas(all, each int64) contextstore.Limits {
	l := limits()
	l.KeepBytes, l.ProjectBytes = all, each
	return l
}

func TestPut_EvictsThoseWhoUseMost(t *testing.T) {
	at := &clock{now: start}
	dir := t.TempDir()
	s := open(t, dir, quotas(100_000, 80_000), at.Now)
	mine, err := putFor(s, t, "mine", random(t, 1, 15_000))
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(12) { // more than the whole store, all newer than mine
		at.Add(time.Minute)
		if _, err := putFor(s, t, "greedy", random(t, 10+i, 15_000)); err != nil {
			t.Fatal(err)
		}
	}
	sweep(t, s)
	if !hasFor(s, "mine", mine) {
		t.Error("another project's uploads evicted the context")
	}
	again := open(t, dir, quotas(100_000, 80_000), at.Now)
	if _, err := putFor(again, t, "greedy", random(t, 99, 15_000)); err != nil || !hasFor(again, "mine", mine) {
		t.Errorf("after a restart: %v", err)
	}
}

// An upload without an end costs no other project what it has.
func TestPut_WithoutEndEvictsNobody(t *testing.T) {
	s := open(t, t.TempDir(), quotas(8<<20, 7<<20), time.Now)
	mine, err := putFor(s, t, "mine", random(t, 1, 3<<20))
	if err != nil {
		t.Fatal(err)
	}
	r := endless(1)
	if _, err := s.Put(t.Context(), "greedy", r, ""); fault.KindOf(err) != fault.ResourceExhausted {
		t.Errorf("an endless upload: %v", err)
	}
	_ = r.(io.Closer).Close()
	if !hasFor(s, "mine", mine) {
		t.Error("it evicted another project's context")
	}
}

// What an earlier version stored is of no project: it goes before what somebody can use.
func TestPut_EvictsWhatIsOfNobodyFirst(t *testing.T) {
	dir := t.TempDir()
	limits := quotas(100_000, 90_000)
	s, err := contextstore.Open(dir, limits, quiet, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(4) {
		if _, err := putFor(s, t, "old", random(t, i, 20_000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Close(), os.RemoveAll(dir+"/owners")); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, limits, time.Now)
	var infos []contextstore.Info
	for i := range uint64(3) {
		info, err := putFor(again, t, "web", random(t, 10+i, 20_000))
		if err != nil {
			t.Fatal(err)
		}
		infos = append(infos, info)
	}
	for i, info := range infos {
		if !hasFor(again, "web", info) {
			t.Errorf("context %d of the project was evicted, and those of nobody stayed", i)
		}
	}
}

// Files take whole blocks of a disk: a quota that counts their bytes alone lets many
// small ones take forty times as much.
func TestPut_CountsTheBlocksOfSmallFiles(t *testing.T) {
	s := open(t, t.TempDir(), quotas(2<<20, 1<<20), time.Now)
	var items []item
	for i := range 1000 { // 4 MB of blocks
		items = append(items, item{Name: fmt.Sprint("f", i), Body: fmt.Sprint(i)})
	}
	if _, err := putFor(s, t, "greedy", tarOf(t, items...)); fault.KindOf(err) != fault.ResourceExhausted {
		t.Errorf("%v", err)
	}
}

// A project that gives up a context which another one has as well leaves it to that.
func TestPut_LeavesSharedContextsToOthers(t *testing.T) {
	at := &clock{now: start}
	s := open(t, t.TempDir(), quotas(200_000, 50_000), at.Now)
	shared := random(t, 1, 20_000)
	for _, project := range []string{"a", "b"} {
		if _, err := putFor(s, t, project, shared); err != nil {
			t.Fatal(err)
		}
	}
	var info contextstore.Info
	for i := range uint64(3) {
		at.Add(time.Minute)
		var err error
		if info, err = putFor(s, t, "a", random(t, 10+i, 20_000)); err != nil {
			t.Fatal(err)
		}
	}
	first, err := putFor(s, t, "b", shared)
	if err != nil || !hasFor(s, "b", first) || !hasFor(s, "a", info) || hasFor(s, "a", first) {
		t.Errorf("b has it %t, a has it %t, %v", hasFor(s, "b", first), hasFor(s, "a", first), err)
	}
}

func TestPin_KeepsAContextUntilItIsReleased(t *testing.T) {
	at := &clock{now: start}
	s := open(t, t.TempDir(), quotas(50_000, 40_000), at.Now)
	waiting, err := putFor(s, t, "web", random(t, 1, 15_000))
	if err != nil {
		t.Fatal(err)
	}
	unpin, err := s.Pin("web", waiting.Digest)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(5) {
		at.Add(10 * time.Hour)
		if _, err := putFor(s, t, "web", random(t, 10+i, 15_000)); err != nil {
			t.Fatal(err)
		}
	}
	at.Add(100 * time.Hour) // longer than any is kept
	sweep(t, s)
	if !has(s, waiting) {
		t.Fatal("a pinned context is gone")
	}
	unpin()
	at.Add(100 * time.Hour)
	sweep(t, s)
	if has(s, waiting) {
		t.Error("it stays though nothing pins it")
	}
	if _, err := s.Pin("web", waiting.Digest); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a pin of what is gone: %v", err)
	}
	if _, err := s.Pin("other", waiting.Digest); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a pin of another project's: %v", err)
	}
}

// endless is an archive that has no end.
func endless(seed uint64) io.Reader {
	r, w := io.Pipe()
	go func() {
		archive := tar.NewWriter(w)
		source := rand.NewChaCha8([32]byte{byte(seed)})
		err := archive.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 30})
		for err == nil {
			_, err = io.CopyN(archive, source, 64<<10)
		}
		_ = w.CloseWithError(err)
	}()
	return r
}

// small returns a directory on a file system of so many bytes, where that can be made.
func small(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	}
	return dir
}

// Uploads that have no end get RESOURCE_EXHAUSTED before the disk is full, whoever
// sends them at once, and an honest client beside them goes on.
func TestPut_EndlessUploadsHarmNobody(t *testing.T) {
	dir := small(t, "size=16m")
	s, err := contextstore.Open(dir, quotas(8<<20, 5<<20), quiet, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range uint64(4) {
		wg.Go(func() {
			r := endless(i)
			_, err := s.Put(t.Context(), "greedy", r, "")
			own, ok := errors.AsType[*fault.Error](err)
			if !ok || own.Kind != fault.ResourceExhausted || own.Reason != "LIMIT_REACHED" || own.RetryAfter == 0 {
				t.Errorf("an endless upload: %v", err)
			}
			_ = r.(io.Closer).Close()
		})
	}
	for i := range uint64(10) {
		if _, err := putFor(s, t, "web", random(t, 100+i, 1<<20)); err != nil {
			t.Errorf("an honest client: %v", err)
		}
	}
	wg.Wait()
	if _, err := putFor(s, t, "greedy", random(t, 1, 1<<20)); err != nil {
		t.Errorf("what failed is still counted: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A quota of bytes bounds the files, too: where each inode stands for 16 KiB of the disk,
// one project's small files cannot take everybody's inodes.
func TestPut_SmallFilesCountTheirInodes(t *testing.T) {
	l := quotas(64<<20, 32<<20)
	l.FileBytes = 16 << 10
	dir := t.TempDir()
	s := open(t, dir, l, time.Now)
	small := func(from, files int) []byte {
		var items []item
		for i := range files {
			items = append(items, item{Name: fmt.Sprint(i), Body: fmt.Sprint(from + i)})
		}
		return tarOf(t, items...)
	}
	if _, err := putFor(s, t, "greedy", small(0, 3000)); fault.KindOf(err) != fault.ResourceExhausted {
		t.Errorf("3,000 inodes of 16 KiB went into 32 MiB: %v", err)
	}
	one := small(0, 1)
	if _, err := putFor(s, t, "other", one); err != nil {
		t.Errorf("another project: %v", err)
	}
	for i := range 200 { // many contexts of one file are many manifests
		if _, err := putFor(s, t, "greedy", small(10_000+i*10, 8)); err != nil {
			t.Fatal(err)
		}
	}
	sweep(t, s)
	files := 0
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files++
		}
		return err
	})
	if most := 64<<20/(16<<10) + 10; err != nil || files > most {
		t.Errorf("%d files, want at most %d: %v", files, most, err)
	}
}
