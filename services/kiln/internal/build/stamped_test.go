package build

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// times walks files as BuildKit's sender does and returns their times by name.
func times(tb testing.TB, files fsutil.FS) map[string]int64 {
	tb.Helper()
	all := make(map[string]int64)
	err := files.Walk(tb.Context(), "", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			all[name] = info.Sys().(*types.Stat).ModTime //nolint:forcetypeassert // of fsutil
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

func TestStampedFS_ShowsReplacedFilesAsChanged(t *testing.T) {
	dir, at := t.TempDir(), time.Unix(1, 0)
	put := func(name string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path+".new", at, at); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	put("stays")
	put("goes")
	time.Sleep(100 * time.Millisecond) // what changed just now may change again
	files, err := newStampedFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	before := times(t, files)
	put("goes")
	after := times(t, files)
	if before["stays"] != after["stays"] || before["goes"] == after["goes"] {
		t.Errorf("before %v, after %v", before, after)
	}
}

// What the stamps cost in an unchanged tree of 100,000 files.
func BenchmarkWalk_100kFiles(b *testing.B) {
	dir := b.TempDir()
	for d := range 1000 {
		sub := filepath.Join(dir, fmt.Sprint(d))
		if err := os.Mkdir(sub, 0o700); err != nil {
			b.Fatal(err)
		}
		for f := range 100 {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(f)), []byte("x"), 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	time.Sleep(100 * time.Millisecond)
	for name, open := range map[string]func(string) (fsutil.FS, error){"plain": fsutil.NewFS, "stamped": newStampedFS} {
		b.Run(name, func(b *testing.B) {
			files, err := open(dir)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				times(b, files)
			}
		})
	}
}
