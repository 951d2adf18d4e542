// Package disk looks at file systems.
package disk

import (
	"syscall"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Of looks at the file system that a path is on.
func Of(path string) (*cache.Disk, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(path, &stat); err != nil {
		return nil, err
	}
	size := uint64(stat.Bsize)                                                                           //nolint:gosec // of a block, and positive
	return &cache.Disk{TotalBytes: int64(stat.Blocks * size), FreeBytes: int64(stat.Bavail * size)}, nil //nolint:gosec // of a disk
}
