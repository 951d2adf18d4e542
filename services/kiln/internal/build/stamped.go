package build

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"

	"github.com/kilnbuild/kiln/pkg/contextfs"
)

// stampedFS are the files of a directory with the times of contextfs.Stamp, so that
// the daemon asks for what was changed in place.
type stampedFS struct {
	fsutil.FS
	dir string
}

// newStampedFS opens a directory.
func newStampedFS(dir string) (fsutil.FS, error) {
	files, err := fsutil.NewFS(dir)
	return stampedFS{files, dir}, err
}

// Walk implements fsutil.FS.
func (s stampedFS) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	return s.FS.Walk(ctx, target, func(name string, entry fs.DirEntry, err error) error {
		if entry != nil && entry.Type().IsRegular() {
			entry = stampedEntry{entry, filepath.Join(s.dir, name)}
		}
		return fn(name, entry, err)
	})
}

// stampedEntry looks at its file only when it is asked: most that .dockerignore leaves
// out are not.
type stampedEntry struct {
	fs.DirEntry
	path string
}

// Info implements fs.DirEntry.
func (e stampedEntry) Info() (fs.FileInfo, error) {
	info, err := e.DirEntry.Info()
	if err != nil {
		return nil, err
	}
	stat, ok := info.Sys().(*types.Stat)
	if !ok {
		return info, nil
	}
	file, err := os.Lstat(e.path)
	if err != nil {
		return nil, err
	}
	stamped := stat.Clone()
	stamped.ModTime = contextfs.Stamp(file)
	return &fsutil.StatInfo{Stat: stamped}, nil
}
