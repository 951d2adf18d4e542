package contextfs

import (
	"io/fs"
	"syscall"
)

func identityOf(info fs.FileInfo) (identity, bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, false
	}
	return identity{device: stat.Dev, inode: stat.Ino, changed: stat.Ctim.Nano()}, true
}
