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
	"github.com/kilnbuild/kiln/services/builder/internal/quota"
)

func open(t *testing.T, dir string, now func() time.Time) *artifacts.Store {
	t.Helper()
	s, err := artifacts.Open(dir, quota.Limits{}, slog.New(slog.DiscardHandler), now)
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
	w, err := s.Create("web", build, name)
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

// files lists the artifacts that a directory holds, by path.
func files(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && entry.Name() != ".project" {
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
	w, err := s.Create("web", "b1", "image.tar")
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
	w, err = again.Create("web", "b1", "other.tar")
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
		if _, err := s.Create("web", "b1", name); fault.KindOf(err) != fault.InvalidArgument {
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
	w, err := s.Create("web", "b1", "image.tar")
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

// limited opens a store that holds so much, whose clock moves on with each artifact.
func limited(t *testing.T, dir string, limits quota.Limits) *artifacts.Store {
	t.Helper()
	s, err := artifacts.Open(dir, limits, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// write writes an artifact of so many bytes.
func write(s *artifacts.Store, project, build string, bytes int) error {
	w, err := s.Create(project, build, "a.tar")
	if err != nil {
		return err
	}
	for written := 0; written < bytes; written += 1000 {
		if _, err := w.Write(make([]byte, 1000)); err != nil {
			return errors.Join(err, w.Abort())
		}
	}
	_, err = w.Commit()
	return err
}

func there(s *artifacts.Store, build string) bool {
	file, _, err := s.Open(build, "a.tar")
	return err == nil && file.Close() == nil
}

func TestWrite_ReservesBeforeItWrites(t *testing.T) {
	dir := t.TempDir()
	s := limited(t, dir, quota.Limits{All: 100_000, Each: 60_000})
	endless := write(s, "web", "b1", 1_000_000)
	if own, ok := errors.AsType[*fault.Error](endless); !ok || own.Kind != fault.ResourceExhausted || own.RetryAfter == 0 {
		t.Errorf("an artifact without an end: %v", endless)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "part")); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	if err := write(s, "web", "b2", 50_000); err != nil {
		t.Errorf("after it failed: %v", err)
	}
}

// Artifacts that are being written count, so that clients at once cannot go over the
// bound together, and one of another project still has room.
func TestWrite_CountsWhatIsUnderWay(t *testing.T) {
	s := limited(t, t.TempDir(), quota.Limits{All: 100_000, Each: 60_000})
	var open []*artifacts.Writer
	taken := 0
	for i := range 10 {
		w, err := s.Create("greedy", fmt.Sprint("b", i), "a.tar")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, w)
		if _, err := w.Write(make([]byte, 10_000)); err == nil {
			taken++
		}
	}
	if taken != 6 {
		t.Errorf("%d artifacts of 10 KB fit into 60 KB", taken)
	}
	if err := write(s, "web", "mine", 30_000); err != nil {
		t.Errorf("another project: %v", err)
	}
	for _, w := range open {
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
	}
}

// An artifact without an end costs no other project what it has: its own project is the
// one that uses most, though nothing of it is complete.
func TestWrite_WithoutEndHarmsNobody(t *testing.T) {
	s := limited(t, t.TempDir(), quota.Limits{All: 100_000, Each: 90_000})
	if err := write(s, "web", "mine", 40_000); err != nil {
		t.Fatal(err)
	}
	if err := write(s, "greedy", "b1", 1_000_000); fault.KindOf(err) != fault.ResourceExhausted {
		t.Errorf("an artifact without an end: %v", err)
	}
	if !there(s, "mine") {
		t.Error("it evicted another project's artifact")
	}
}

func TestWrite_MakesRoomAtTheCostOfWhoUsesMost(t *testing.T) {
	dir := t.TempDir()
	s := limited(t, dir, quota.Limits{All: 100_000, Each: 70_000})
	steps := []string{"small"}
	if err := write(s, "small", "small", 20_000); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		build := fmt.Sprint("greedy", i)
		steps = append(steps, build)
		if err := write(s, "greedy", build, 20_000); err != nil {
			t.Fatal(err)
		}
		// Ages are those of the files.
		for j, name := range steps {
			at := time.Now().Add(time.Duration(j-100) * time.Minute)
			if err := os.Chtimes(filepath.Join(dir, name, "a.tar"), at, at); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	if !there(s, "small") || !there(s, "greedy4") || there(s, "greedy0") {
		t.Errorf("left: %t %t %t, want the other project's, the newest, and not the oldest", there(s, "small"), there(s, "greedy4"), there(s, "greedy0"))
	}
	again := limited(t, dir, quota.Limits{All: 70_000, Each: 70_000})
	if err := write(again, "web", "web", 25_000); err != nil {
		t.Fatal(err)
	}
	if !there(again, "small") || !there(again, "web") {
		t.Error("after a restart the projects of artifacts are not known")
	}
}
