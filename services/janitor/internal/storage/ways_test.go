package storage

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// All that is asked of a storage holds on file systems that do not rename without replacing.
func TestStorages_WithoutRenameNoReplace(t *testing.T) {
	defer TakeAwayCalls(false)()
	for name, conforms := range map[string]func(f filled){
		"manifests come back":  manifestsComeBack,
		"pushed again stays":   pushedAgainStays,
		"blobs come back":      blobsComeBack,
		"wanted comes back":    wantedComesBack,
		"retagged comes back":  retaggedComesBack,
		"lost tags go":         lostTagsGo,
		"journals last":        journalsLast,
		"purged is gone":       purgedIsGone,
		"one holds the lock":   oneHoldsTheLock,
		"aliases are wanted":   aliasesAreWanted,
		"orphans with aliases": orphansGoWithAliases,
	} {
		t.Run(name, func(t *testing.T) { conforms(filled{t, New(t.TempDir())}) })
	}
}

// A directory that comes back leaves what a push has put there meanwhile.
func TestGiveBack_LeavesWhatIsThere(t *testing.T) {
	for _, without := range []bool{false, true} {
		dir := t.TempDir()
		undo := func() {}
		if without {
			undo = TakeAwayCalls(false)
		}
		write := func(path, text string) {
			t.Helper()
			path = filepath.Join(dir, path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		write("q/a/data", "old")
		write("r/a/data", "new")
		write("q/b/data", "old")
		d := &disk{root: dir}
		given, occupied, err := d.giveBack(filepath.Join(dir, "q/a"), filepath.Join(dir, "r/a"))
		if given || !occupied || err != nil {
			t.Errorf("without the call: %t: given %t, occupied %t, %v", without, given, occupied, err)
		}
		given, occupied, err = d.giveBack(filepath.Join(dir, "q/b"), filepath.Join(dir, "r/b"))
		if !given || occupied || err != nil {
			t.Errorf("without the call: %t: given %t, occupied %t, %v", without, given, occupied, err)
		}
		for path, want := range map[string]string{"r/a/data": "new", "q/a/data": "old", "r/b/data": "old"} {
			if text, err := os.ReadFile(filepath.Join(dir, path)); err != nil || string(text) != want {
				t.Errorf("%s: %q, %v", path, text, err)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, "q/b")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it is still where it was: %v", err)
		}
		undo()
	}
}

// No run begins on a file system from which nothing could come back.
func TestLock_RefusesFileSystemsThatCannotUndo(t *testing.T) {
	s := New(t.TempDir())
	undo := TakeAwayCalls(true)
	_, _, err := s.Lock(t.Context(), "run")
	if wrong, ok := errors.AsType[*fault.Error](err); !ok || wrong.Kind != fault.FailedPrecondition || !strings.Contains(wrong.Error(), "RENAME_NOREPLACE") {
		t.Errorf("%v", err)
	}
	undo()
	_, unlock, err := s.Lock(t.Context(), "run")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	left, err := filepath.Glob(filepath.Join(s.Root(), ownDir, "probe-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestLagOf(t *testing.T) {
	mounts := "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n" +
		"30 22 0:40 / /srv rw,relatime shared:2 - nfs4 nas:/srv rw,vers=4.2,acregmin=3,acdirmin=30,acdirmax=90,hard\n" +
		"31 22 0:41 / /srv/own rw - nfs nas:/own rw,noac\n" +
		"32 22 0:42 / /with\\040space rw - nfs nas:/space rw\n" +
		"33 22 0:43 / /smb rw - cifs //nas/smb rw,actimeo=5\n"
	for path, want := range map[string]time.Duration{
		"/var/lib": 0, "/srv": 90 * time.Second, "/srv/registry": 90 * time.Second, "/srvother": 0, "/srv/own/x": 0,
		"/with space/x": time.Minute, "/smb/registry": 5 * time.Second,
	} {
		if got := lagOf(mounts, path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}
