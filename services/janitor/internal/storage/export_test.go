package storage

import (
	"time"

	"golang.org/x/sys/unix"
)

// SettleAtOnce has what was written just now count as settled.
func SettleAtOnce() (undo func()) {
	was := settled
	settled = -time.Hour
	return func() { settled = was }
}

// TakeAwayCalls has the file system be one without renameat2(RENAME_NOREPLACE), as NFS and CephFS
// are, or without link(2), too.
func TakeAwayCalls(links bool) (undo func()) {
	rename, link := renameNew, hardLink
	renameNew = func(string, string) error { return unix.EINVAL }
	if links {
		hardLink = func(string, string) error { return unix.EPERM }
	}
	return func() { renameNew, hardLink = rename, link }
}
