package storage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
)

// tree writes files of the given sizes below a new root.
func tree(t *testing.T, files map[string]int) *Storage {
	t.Helper()
	root := t.TempDir()
	for name, size := range files {
		path := filepath.Join(root, layout, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return New(root)
}

func TestUsage(t *testing.T) {
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	s := tree(t, map[string]int{
		"blobs/sha256/aa/" + a + "/data":                                 100,
		"blobs/sha256/bb/" + b + "/data":                                 7,
		"blobs/sha256/bb/" + strings.Repeat("c", 64) + "/other":          5, // no data
		"repositories/x/_uploads/1/data":                                 11,
		"repositories/x/_uploads/1/startedat":                            20,
		"repositories/x/_uploads/2/startedat":                            20, // no data yet
		"repositories/x/y/_uploads/3/data":                               3,
		"repositories/x/_layers/sha256/" + a + "/link":                   71,
		"repositories/x/_manifests/revisions/sha256/" + b + "/link":      71,
		"repositories/x/_manifests/tags/_uploads/index/sha256/" + b + "": 71,
	})
	got, err := s.Usage(t.Context(), func(d content.Digest) bool { return d == content.Digest("sha256:"+a) })
	if err != nil {
		t.Fatal(err)
	}
	if got.DiskTotal <= 0 || got.DiskFree <= 0 || got.DiskFree > got.DiskTotal {
		t.Errorf("disk: %d of %d free", got.DiskFree, got.DiskTotal)
	}
	got.DiskTotal, got.DiskFree = 0, 0
	want := usage.Storage{Blobs: 2, BlobBytes: 107, UntaggedBytes: 7, Uploads: 2, UploadBytes: 14}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Before the first push there is nothing, and that is no error.
func TestUsageOfNothing(t *testing.T) {
	for name, root := range map[string]string{"no layout": t.TempDir(), "no root": filepath.Join(t.TempDir(), "registry")} {
		got, err := New(root).Usage(t.Context(), func(content.Digest) bool { return true })
		if err != nil || got.Blobs != 0 || got.DiskTotal == 0 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestDiskOfWhatCannotBeRead(t *testing.T) {
	if _, err := New(filepath.Join(t.TempDir(), "a", "b")).Disk(); err == nil {
		t.Error("a root without a parent was read")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(file).Disk(); err == nil {
		t.Error("a file was read as a directory")
	}
}

func TestHas(t *testing.T) {
	s := tree(t, map[string]int{"repositories/cache/web/_layers/x": 1})
	for name, want := range map[string]bool{"cache/web": true, "cache/other": false, "../..": false} {
		if got, err := s.Has(name); got != want || err != nil {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
}
