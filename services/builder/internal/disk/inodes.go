package disk

import "syscall"

// Bounds of PerFile, in bytes.
const (
	leastPerFile = 4 << 10
	mostPerFile  = 64 << 10
)

// PerFile returns how many bytes of the file system at a path there are for each of its
// inodes, between 4 and 64 KiB: whoever has that many bytes of it may have one file. A file
// system that makes inodes as they are needed has 4 KiB.
func PerFile(path string) int64 {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(path, &fs); err != nil || fs.Files == 0 {
		return leastPerFile
	}
	return perFile(fs.Blocks*uint64(max(fs.Bsize, 0)), fs.Files) //nolint:gosec // it is not negative
}

func perFile(bytes, files uint64) int64 {
	return int64(min(max(bytes/files, leastPerFile), mostPerFile)) //nolint:gosec // it is bounded
}
