package buildkit

import (
	"io/fs"
	"time"

	"github.com/tonistiigi/fsutil"

	"github.com/kilnbuild/kiln/pkg/contextfs"
)

// stampedRoot is a directory whose files have the times of contextfs.Stamp, so that the
// daemon asks for what was changed in place.
type stampedRoot struct{ fsutil.Root }

// Lstat implements fsutil.Root.
func (r stampedRoot) Lstat(name string) (fs.FileInfo, error) {
	info, err := r.Root.Lstat(name)
	if err != nil {
		return nil, err
	}
	return stampedInfo{info}, nil
}

type stampedInfo struct{ fs.FileInfo }

// ModTime implements fs.FileInfo.
func (i stampedInfo) ModTime() time.Time { return time.Unix(0, contextfs.Stamp(i.FileInfo)) }
