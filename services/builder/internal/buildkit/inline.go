package buildkit

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/moby/buildkit/util/staticfs"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// inlineFS is a file system of the files and the directories above them, all of
// the same time, in nanoseconds since 1970.
func inlineFS(files []build.File, modTime int64) fsutil.FS {
	tree := staticfs.NewFS()
	seen := make(map[string]bool)
	for _, file := range files {
		for dir := path.Dir(file.Path); dir != "." && !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			tree.Add(dir, &fstypes.Stat{Mode: uint32(os.ModeDir | 0o755), ModTime: modTime}, nil)
		}
		mode := file.Mode
		if mode == 0 {
			mode = 0o644
		}
		tree.Add(file.Path, &fstypes.Stat{Mode: mode, ModTime: modTime}, file.Content)
	}
	return skipping{tree}
}

// skipping is a static file system whose walk may skip directories.
type skipping struct{ *staticfs.FS }

// Walk implements fsutil.FS.
func (s skipping) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	skipped := ""
	return s.FS.Walk(ctx, target, func(name string, entry fs.DirEntry, err error) error {
		if skipped != "" && strings.HasPrefix(name, skipped) {
			return nil
		}
		err = fn(name, entry, err)
		if !errors.Is(err, fs.SkipDir) {
			return err
		}
		if !entry.IsDir() {
			name = path.Dir(name)
		}
		skipped = name + "/"
		return nil
	})
}

// contentKey is the same for the same files only.
func contentKey(files []build.File) string {
	digest := sum(files)
	return hex.EncodeToString(digest[:])
}

// timeOf is a time that is the same for the same files and, but for one chance in
// 2^62, another for others.
func timeOf(files []build.File) int64 {
	digest := sum(files)
	return int64(binary.BigEndian.Uint64(digest[:]) >> 2) //nolint:gosec // two bits are gone
}

func sum(files []build.File) [sha256.Size]byte {
	hash := sha256.New()
	for _, f := range files {
		fmt.Fprintf(hash, "%q %o %d\n", f.Path, f.Mode, len(f.Content))
		hash.Write(f.Content)
	}
	return [sha256.Size]byte(hash.Sum(nil))
}
