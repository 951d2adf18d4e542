package sqlite_test

import (
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/testkit"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/build/storetest"
	"github.com/kilnbuild/kiln/services/builder/internal/sqlite"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T, dir string) build.Store { return open(t, filepath.Join(dir, "builds.db")) })
}

// open opens a store, which the test closes.
func open(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	store, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatalf("opening %s: %v", path, err)
	}
	return store
}

// closed closes a store after the test.
func closed(t testing.TB, store *sqlite.Store) *sqlite.Store {
	t.Helper()
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	return store
}

// write adds a build of that id with one frame of that many bytes, which do not
// compress, and ends it.
func write(t testing.TB, store *sqlite.Store, id string, bytes int) error {
	t.Helper()
	rec := newRecord(id)
	if _, _, err := store.Create(t.Context(), rec, nil); err != nil {
		return err
	}
	data := make([]byte, bytes)
	_, _ = rand.Read(data) // Never fails.
	rec.State, rec.Ended = build.Succeeded, time.Now()
	return store.Commit(t.Context(), rec, []build.Frame{{Sequence: 1, Data: data}})
}

func TestFilesArePrivate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "odd name?#%20", "builds.db")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil { //nolint:gosec // that it is narrowed is the test
		t.Fatal(err)
	}
	store := closed(t, open(t, path))
	if err := write(t, store, "b1", 10); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files++
		if info, err := entry.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v, error %v", path, info.Mode(), err)
		}
		return nil
	})
	if err != nil || files != 3 {
		t.Errorf("%d files, want the database, its log and its index; error %v", files, err)
	}
}

// What is no database of this version is refused, and left as it is.
func TestOpenRefuses(t *testing.T) {
	later := func(t *testing.T, path string) {
		if err := open(t, path).Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := raw(t, path).ExecContext(t.Context(), "PRAGMA user_version = 99"); err != nil {
			t.Fatal(err)
		}
	}
	text := func(t *testing.T, path string) {
		if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		make func(t *testing.T, path string)
		kind fault.Kind
		says string
	}{
		"a later version": {later, fault.FailedPrecondition, "later version"},
		"another file":    {text, fault.Internal, "damaged"},
		"a directory":     {func(t *testing.T, path string) { t.Helper(); must(t, os.Mkdir(path, 0o700)) }, fault.Internal, "is a directory"},
		"no directory":    {func(t *testing.T, path string) { t.Helper(); must(t, os.Remove(filepath.Dir(path))) }, fault.Internal, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.VerifyNoLeaks(t)
			path := filepath.Join(t.TempDir(), "state", "builds.db")
			must(t, os.Mkdir(filepath.Dir(path), 0o700))
			test.make(t, path)
			before, _ := os.ReadFile(path)
			_, err := sqlite.Open(t.Context(), path)
			if _, ok := errors.AsType[*fault.Error](err); !ok || fault.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("%v, want a fault of kind %s that says %q", err, test.kind, test.says)
			}
			if after, _ := os.ReadFile(path); string(after) != string(before) {
				t.Error("the file has changed")
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// raw opens a database without the store.
func raw(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	return db
}

func TestAfterClose(t *testing.T) {
	store := open(t, filepath.Join(t.TempDir(), "builds.db"))
	must(t, store.Close())
	if err := write(t, store, "b1", 10); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("writing: %v, want a fault of kind Unavailable", err)
	}
	if _, err := store.Get(t.Context(), "b1"); err == nil {
		t.Error("reading: no error")
	}
}

// A write that fails however often it is tried says so; one that may succeed does not.
func TestCommit_RefusesForGood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "builds.db")
	store := closed(t, open(t, path))
	rec := newRecord("b1")
	if _, _, err := store.Create(t.Context(), rec, nil); err != nil {
		t.Fatal(err)
	}
	for name, frames := range map[string][]build.Frame{
		"a gap":    {{Sequence: 7, Data: []byte("x")}},
		"too much": {{Sequence: 1, Data: make([]byte, 1_000_000_001)}},
	} {
		if err := store.Commit(t.Context(), rec, frames); !errors.Is(err, build.ErrRefused) || fault.KindOf(err) != fault.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := store.Commit(t.Context(), rec, []build.Frame{{Sequence: 1, Data: []byte("x")}}); err != nil {
		t.Errorf("what is fine: %v", err)
	}
	other := open(t, filepath.Join(t.TempDir(), "builds.db"))
	must(t, other.Close())
	if err := other.Commit(t.Context(), rec, nil); !errors.Is(err, build.ErrRefused) {
		t.Errorf("a store that is closed: %v", err)
	}
}

// A full disk is said, loses nothing that was committed, and is forgotten when
// there is space again.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatalf("mounting a small file system, which takes root: %v", err)
	}
	t.Cleanup(func() { must(t, syscall.Unmount(dir, 0)) })
	ballast := filepath.Join(dir, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 4<<20), 0o600))
	path := filepath.Join(dir, "builds.db")
	store := open(t, path)

	written := 0
	var err error
	for ; err == nil && written < 1000; written++ {
		err = write(t, store, fmt.Sprintf("b%d", written), 50_000)
	}
	written-- // The last one was not.
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || e.Kind != fault.ResourceExhausted || e.Reason != "DISK_FULL" {
		t.Fatalf("%d builds, then %v; want DISK_FULL", written, err)
	}
	if written == 0 {
		t.Fatal("nothing was written at all")
	}
	check := func() {
		t.Helper()
		for i := range written {
			some, err := store.Frames(t.Context(), fmt.Sprintf("b%d", i), 1, 1)
			if err != nil || len(some) != 1 || len(some[0].Data) != 50_000 {
				t.Fatalf("build %d of %d: %d frames, error %v", i, written, len(some), err)
			}
		}
	}
	check()

	must(t, os.Remove(ballast))
	if err := write(t, store, "healed", 50_000); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	check()
	must(t, store.Close())
	var verdict string
	must(t, raw(t, path).QueryRowContext(t.Context(), "PRAGMA integrity_check").Scan(&verdict))
	if verdict != "ok" {
		t.Errorf("the database is damaged: %s", verdict)
	}
	store = closed(t, open(t, path))
	check()
}

// What is forgotten is given back to the file system.
func TestForgetShrinksTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "builds.db")
	store := closed(t, open(t, path))
	for i := range 100 {
		must(t, write(t, store, fmt.Sprintf("b%d", i), 200_000))
	}
	length := func() int64 {
		info, err := os.Stat(path)
		must(t, err)
		return info.Size()
	}
	testkit.Eventually(t, 20*time.Second, func() bool { return length() > 20_000_000 })
	gone, err := store.Forget(t.Context(), time.Time{}, 5, 1<<40)
	if err != nil || len(gone) != 95 {
		t.Fatalf("%d went, error %v", len(gone), err)
	}
	testkit.Eventually(t, 20*time.Second, func() bool { return length() < 1_500_000 })
}

// The log does not grow for ever when there is always somebody who reads.
func TestLogStaysSmallUnderReaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "builds.db")
	store := closed(t, open(t, path))
	must(t, write(t, store, "first", 500_000))
	var readers sync.WaitGroup
	done := make(chan struct{})
	defer readers.Wait()
	defer close(done)
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := store.Frames(t.Context(), "first", 1, 1<<20); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 90 {
		must(t, write(t, store, fmt.Sprintf("b%d", i), 500_000))
	}
	testkit.Eventually(t, 20*time.Second, func() bool {
		info, err := os.Stat(path + "-wal")
		must(t, err)
		return info.Size() < 33<<20
	})
}

// FuzzPageToken holds List to answering any token with a page or as bad input.
func FuzzPageToken(f *testing.F) {
	store := closed(f, open(f, filepath.Join(f.TempDir(), "builds.db")))
	for i := range 5 {
		if err := write(f, store, fmt.Sprintf("b%d", i), 10); err != nil {
			f.Fatal(err)
		}
	}
	query := build.Query{Order: []aip.Order{{Field: build.FieldProject}, {Field: build.FieldEndTime, Desc: true}}}
	_, token, err := store.List(f.Context(), query, 2, "")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add("")
	f.Add("bnVsbA")
	f.Fuzz(func(t *testing.T, token string) {
		page, _, err := store.List(t.Context(), query, 3, token)
		if err != nil && fault.KindOf(err) != fault.InvalidArgument || len(page) > 3 {
			t.Errorf("%d builds, error %v", len(page), err)
		}
	})
}
