package buildkit

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// treeFS shows a stored context to the daemon, which asks for the files only that
// it does not have. It tells by path, size, mode and time; see modTime.
func treeFS(tree *contextstore.Tree) fsutil.FS { return storedFS{tree} }

type storedFS struct{ tree *contextstore.Tree }

// Open implements fsutil.FS.
func (s storedFS) Open(name string) (io.ReadCloser, error) { return s.tree.Open(name) }

// Walk implements fsutil.FS. fn may skip directories.
func (s storedFS) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	target = strings.TrimPrefix(path.Join("/", target), "/")
	skipped := ""
	for _, entry := range s.tree.Entries() {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := entry.Path
		below := target == "" || name == target || strings.HasPrefix(name, target+"/")
		if !below || (skipped != "" && strings.HasPrefix(name, skipped)) {
			continue
		}
		err := fn(name, &fsutil.DirEntryInfo{Stat: statOf(entry)}, nil)
		switch {
		case errors.Is(err, fs.SkipAll):
			return nil
		case errors.Is(err, fs.SkipDir) && entry.Mode.IsDir():
			skipped = name + "/"
		case errors.Is(err, fs.SkipDir) && path.Dir(name) == ".":
			return nil // the rest of the root
		case errors.Is(err, fs.SkipDir):
			skipped = path.Dir(name) + "/"
		case err != nil:
			return err
		}
	}
	return nil
}

func statOf(e contextstore.Entry) *fstypes.Stat {
	stat := &fstypes.Stat{Path: e.Path, Mode: uint32(e.Mode), ModTime: e.ModTime * int64(time.Second)}
	switch {
	case e.Mode.IsRegular():
		stat.Size, stat.ModTime = e.Size, modTime(e)
	case e.Mode&fs.ModeSymlink != 0:
		stat.Size, stat.Linkname = int64(len(e.Target)), e.Target
	}
	return stat
}

// modTime is the file's time, whose nanoseconds are taken from its content: a
// file of the same size and second but other content has, but for one chance in
// a billion, another time. What is written into layers is the seconds.
func modTime(e contextstore.Entry) int64 {
	nanoseconds := binary.BigEndian.Uint64(e.Digest[:8]) % uint64(time.Second)
	return e.ModTime*int64(time.Second) + int64(nanoseconds) //nolint:gosec // less than a second
}
