package contextfs

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func lstat(t *testing.T, path string) fs.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// put writes a file and sets its time, as tar, Nix and Bazel do.
func put(t *testing.T, path, content string, at time.Time) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestStamp_ChangesWhenOtherContentHasTheSameTime(t *testing.T) {
	for name, at := range map[string]time.Time{
		"the first second": time.Unix(1, 0), "before 1970": time.Unix(-5, 0), "in the middle of a millisecond": time.Unix(1_700_000_000, 123_456_789),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			put(t, path, "old", at)
			if early, late := Stamp(lstat(t, path)), Stamp(lstat(t, path)); early == late {
				t.Error("a file that may change within the same tick has one stamp")
			}
			time.Sleep(2 * justNow)
			first := Stamp(lstat(t, path))
			if again := Stamp(lstat(t, path)); again != first {
				t.Errorf("an unchanged file has the stamps %d and %d", first, again)
			}
			put(t, path, "new", at)
			changed := Stamp(lstat(t, path))
			if changed == first {
				t.Error("content written in place has the stamp of the old one")
			}
			put(t, path+".new", "nww", at)
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
			replaced := Stamp(lstat(t, path))
			if replaced == changed {
				t.Error("a file put in another's place has its stamp")
			}
			for _, stamp := range []int64{first, changed, replaced} {
				if got := time.Unix(0, stamp); got.Unix() != at.Unix() || at.Nanosecond() != 0 && got.Sub(at).Abs() > time.Millisecond {
					t.Errorf("%s is shown as %s", at, got)
				}
			}
		})
	}
}

func TestStamp_LeavesLinksAndDirectoriesAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "link")} {
		if info := lstat(t, path); Stamp(info) != info.ModTime().UnixNano() {
			t.Errorf("%s has another time", path)
		}
	}
}
