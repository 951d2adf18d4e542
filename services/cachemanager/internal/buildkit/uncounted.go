package buildkit

import (
	"io/fs"
	"path/filepath"
	"syscall"
)

// uncounted are the bytes below a daemon's root that are in no record of its cache: its
// databases, with those of its workers, and downloads that have not ended. What cannot be
// read, or is gone meanwhile, is left out: it is a figure for people.
func uncounted(root string) (bytes int64) {
	for _, pattern := range []string{"*.db", "*/*.db"} {
		files, _ := filepath.Glob(filepath.Join(root, pattern)) // the pattern is right
		for _, file := range files {
			var stat syscall.Stat_t
			if syscall.Lstat(file, &stat) == nil {
				bytes += stat.Blocks * 512
			}
		}
	}
	ingests, _ := filepath.Glob(filepath.Join(root, "*", "content", "ingest"))
	for _, ingest := range ingests {
		_ = filepath.WalkDir(ingest, func(path string, entry fs.DirEntry, err error) error {
			var stat syscall.Stat_t
			if err == nil && entry.Type().IsRegular() && syscall.Lstat(path, &stat) == nil {
				bytes += stat.Blocks * 512
			}
			return nil // whatever it is: the others are looked at
		})
	}
	return bytes
}
