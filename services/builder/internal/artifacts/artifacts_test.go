package artifacts_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/artifacts"
)

func open(t *testing.T, dir string, now func() time.Time) *artifacts.Store {
	t.Helper()
	s, err := artifacts.Open(dir, slog.New(slog.DiscardHandler), now)
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

func put(t *testing.T, s *artifacts.Store, build, name, content string) {
	t.Helper()
	if err := save(s, build, name, content); err != nil {
		t.Fatal(err)
	}
}

func save(s *artifacts.Store, build, name, content string) error {
	w, err := s.Create(build, name)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, content); err != nil {
		return errors.Join(err, w.Abort())
	}
	size, err := w.Commit()
	if err == nil && size != int64(len(content)) {
		err = fmt.Errorf("%d bytes, want %d", size, len(content))
	}
	return err
}

func content(t *testing.T, s *artifacts.Store, build, name string) (string, error) {
	t.Helper()
	file, size, err := s.Open(build, name)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(file)
	if err != nil || int64(len(data)) != size {
		t.Errorf("%d bytes of %d, %v", len(data), size, err)
	}
	return string(data), nil
}

// files lists what a directory holds, by path.
func files(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestAnArtifactIsCompleteOrAbsent(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, time.Now)
	w, err := s.Create("b1", "image.tar")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "half"); err != nil {
		t.Fatal(err)
	}
	if _, err := content(t, s, "b1", "image.tar"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("before Commit: %v", err)
	}
	again := open(t, dir, time.Now) // as after a kill -9
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("left half-made: %v", left)
	}
	put(t, again, "b1", "image.tar", "whole")
	put(t, again, "b1", "image.tar", "newer")
	if got, err := content(t, again, "b1", "image.tar"); err != nil || got != "newer" {
		t.Errorf("%q, %v", got, err)
	}
	w, err = again.Create("b1", "other.tar")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	if left := files(t, dir); len(left) != 1 {
		t.Errorf("after Abort: %v", left)
	}
}

func TestNamesLeadNowhereElse(t *testing.T) {
	s := open(t, t.TempDir(), time.Now)
	for _, name := range []string{"", "..", ".", "../x", "/etc/passwd", "a/b", "a\x00b", "-x", ".hidden"} {
		if _, err := s.Create("b1", name); fault.KindOf(err) != fault.InvalidArgument {
			t.Errorf("Create %q: %v", name, err)
		}
		if _, _, err := s.Open("b1", name); fault.KindOf(err) != fault.NotFound {
			t.Errorf("Open %q: %v", name, err)
		}
		if _, _, err := s.Open(name, "x"); fault.KindOf(err) != fault.NotFound {
			t.Errorf("Open of build %q: %v", name, err)
		}
		if err := s.Remove(name); err != nil {
			t.Errorf("Remove %q: %v", name, err)
		}
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	s := open(t, dir, func() time.Time { return now })
	for i, build := range []string{"old", "middle", "new"} {
		put(t, s, build, "files.tar", "0123456789")
		at := now.Add(time.Duration(i-3) * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, build, "files.tar"), at, at); err != nil {
			t.Fatal(err)
		}
	}
	file, _, err := s.Open("middle", "files.tar")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for _, step := range []struct {
		age   time.Duration
		bytes int64
		freed int64
		left  int
	}{
		{4 * time.Hour, 30, 0, 3},
		{2*time.Hour + time.Minute, 30, 10, 2},
		{4 * time.Hour, 19, 10, 1},
		{4 * time.Hour, 0, 10, 0},
	} {
		freed, err := s.Sweep(t.Context(), step.age, step.bytes)
		if err != nil || freed != step.freed || len(files(t, dir)) != step.left {
			t.Errorf("%+v: freed %d, %v left, %v", step, freed, files(t, dir), err)
		}
	}
	if data, err := io.ReadAll(file); err != nil || len(data) != 10 {
		t.Errorf("the open one: %q, %v", data, err)
	}
	put(t, s, "b9", "a", "x")
	put(t, s, "b9", "b", "x")
	if err := errors.Join(s.Remove("b9"), s.Remove("b9")); err != nil || len(files(t, dir)) != 0 {
		t.Errorf("after Remove: %v, %v", files(t, dir), err)
	}
}

// A sweep that takes the last artifact of a build, and with it its directory, does
// not get in the way of the next one.
func TestCommitBesideSweep(t *testing.T) {
	s := open(t, t.TempDir(), time.Now)
	var wg sync.WaitGroup
	defer wg.Wait()
	done := make(chan struct{})
	defer close(done)
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := s.Sweep(t.Context(), time.Hour, 0); err != nil {
				t.Error(err)
			}
		}
	})
	var builds sync.WaitGroup
	for i := range 8 {
		builds.Go(func() {
			for range 100 {
				if err := save(s, "b1", fmt.Sprintf("image-%d.tar", i), "x"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	builds.Wait()
}

// A full disk is told as such, and leaves nothing.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mounting a tmpfs (the tests need root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := open(t, dir, time.Now)
	w, err := s.Create("b1", "image.tar")
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = w.Write(make([]byte, 32<<10))
	}
	if known, ok := errors.AsType[*fault.Error](err); !ok || known.Reason != "DISK_FULL" {
		t.Errorf("%v", err)
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	if left := files(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	put(t, s, "b1", "image.tar", "fits")
}
