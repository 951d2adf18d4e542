package buildkit

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// storedTree is a stored context of these files, all of one second.
func storedTree(t *testing.T, files map[string]string) *contextstore.Tree {
	t.Helper()
	return storedTreeIn(t, t.TempDir(), files)
}

// storedTreeIn has its store in a directory.
func storedTreeIn(t *testing.T, dir string, files map[string]string) *contextstore.Tree {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1e9, 5)}
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			h.Typeflag, h.Linkname, h.Size, content = tar.TypeSymlink, target, 0, ""
		}
		err := w.WriteHeader(h)
		if err == nil {
			_, err = io.WriteString(w, content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	store, err := contextstore.Open(dir, contextstore.Limits{
		KeepAge: time.Hour, KeepBytes: 1 << 30, MaxBytes: 1 << 30, MaxEntries: 1000, MaxRatio: 200, MaxDepth: 20, MaxPathBytes: 200,
	}, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	info, err := store.Put(t.Context(), "web", &b, "")
	if err != nil {
		t.Fatal(errors.Join(err, store.Close()))
	}
	tree, err := store.Open("web", info.Digest)
	if err != nil {
		t.Fatal(errors.Join(err, store.Close()))
	}
	t.Cleanup(func() {
		if err := errors.Join(tree.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return tree
}

// walked lists what a walk shows, in its order.
func walked(t *testing.T, files fsutil.FS, target string, skip func(name string) error) (stats []*fstypes.Stat) {
	t.Helper()
	err := files.Walk(t.Context(), target, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*fstypes.Stat)
		if !ok || stat.GetPath() != name {
			t.Errorf("%q has %T %v", name, info.Sys(), stat)
		}
		stats = append(stats, stat)
		return skip(name)
	})
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

func everything(string) error { return nil }

// names are the paths of a walk, on one line.
func names(stats []*fstypes.Stat) string {
	var all []string
	for _, stat := range stats {
		all = append(all, stat.GetPath())
	}
	return strings.Join(all, " ")
}

func TestTreeWalk(t *testing.T) {
	files := treeFS(storedTree(t, map[string]string{
		"Dockerfile": "FROM scratch", "a/b/c": "c", "a/d": "d", "a-b": "x", "ab": "y", "a/link": "-> ../ab", "z/y": "z",
	}))
	skipping := func(skipped string, with error) func(string) error {
		return func(name string) error {
			if name == skipped {
				return with
			}
			return nil
		}
	}
	for _, c := range []struct {
		target string
		skip   func(string) error
		want   string
	}{
		{"", everything, "Dockerfile a a/b a/b/c a/d a/link a-b ab z z/y"},
		{"/", everything, "Dockerfile a a/b a/b/c a/d a/link a-b ab z z/y"},
		{"a", everything, "a a/b a/b/c a/d a/link"},
		{"a/b/", everything, "a/b a/b/c"},
		{"none", everything, ""},
		{"", skipping("a", fs.SkipDir), "Dockerfile a a-b ab z z/y"},
		{"", skipping("a/d", fs.SkipDir), "Dockerfile a a/b a/b/c a/d a-b ab z z/y"},
		{"", skipping("ab", fs.SkipDir), "Dockerfile a a/b a/b/c a/d a/link a-b ab"},
		{"", skipping("a/b", fs.SkipAll), "Dockerfile a a/b"},
	} {
		if got := names(walked(t, files, c.target, c.skip)); got != c.want {
			t.Errorf("from %q: walked %s\nwant %s", c.target, got, c.want)
		}
	}
	// What the daemon's end of the transfer insists on.
	validator := &fsutil.Validator{}
	for _, stat := range walked(t, files, "", everything) {
		info := &fsutil.StatInfo{Stat: stat}
		if err := validator.HandleChange(fsutil.ChangeKindAdd, stat.GetPath(), info, nil); err != nil {
			t.Errorf("%q: %v", stat.GetPath(), err)
		}
	}
	content, err := files.Open("a/b/c")
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(content)
	if err = errors.Join(err, content.Close()); err != nil || string(data) != "c" {
		t.Errorf("%q, %v", data, err)
	}
}

// The daemon tells files apart by path, size, mode and time: other content of the
// same size and second has another time, and the same content the same.
func TestOtherContentHasAnotherTime(t *testing.T) {
	timeOf := func(content string) time.Time {
		stats := walked(t, treeFS(storedTree(t, map[string]string{"a": content})), "", everything)
		at := slices.IndexFunc(stats, func(s *fstypes.Stat) bool { return s.GetPath() == "a" })
		return time.Unix(0, stats[at].GetModTime())
	}
	one, other, again := timeOf("one"), timeOf("two"), timeOf("one")
	if one.Equal(other) || !one.Equal(again) {
		t.Errorf("%s, %s for other content, %s for the same", one, other, again)
	}
	if one.Unix() != 1e9 || other.Unix() != 1e9 {
		t.Errorf("the second is not that of the file: %s, %s", one, other)
	}
}
