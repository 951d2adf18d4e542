package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// access is who may read and write a file: its mode, owner and group.
type access struct {
	mode     fs.FileMode
	uid, gid int    // -1: those of the cache manager
	replaces string // the file that it was the access of; empty: a new file
	shared   int    // group that may write the directory; -1: none
}

// newAccess returns the access of a new file: the mode, and the group of the directory.
func newAccess(root *os.Root, mode fs.FileMode) (access, error) {
	as := access{mode: mode, uid: -1, gid: -1, shared: -1}
	dir, err := root.Stat(".")
	if err != nil {
		return as, err
	}
	if of, ok := dir.Sys().(*syscall.Stat_t); ok {
		as.gid = int(of.Gid)
		if dir.Mode().Perm()&0o020 != 0 {
			as.shared = as.gid
		}
	}
	return as, nil
}

// accessOf returns the access of a file that is replaced; mode is that of one that is not there.
func accessOf(root *os.Root, name string, mode fs.FileMode) (access, error) {
	as, err := newAccess(root, mode)
	if err != nil {
		return as, err
	}
	info, err := root.Lstat(name)
	if missing(err) {
		return as, nil
	}
	if err != nil {
		return as, err
	}
	as.mode, as.replaces = info.Mode().Perm(), name
	if of, ok := info.Sys().(*syscall.Stat_t); ok {
		as.uid, as.gid = int(of.Uid), int(of.Gid)
	}
	return as, nil
}

// give gives a file the access. Only root can give files away. Where the owner cannot be kept, the
// group that may write the directory gets the owner's rights. Where the file does not have that
// group, it is a FAILED_PRECONDITION fault: its owner could not write the replacement.
func (a access) give(f *os.File) error {
	mode, err := a.mode, f.Chown(a.uid, a.gid)
	if errors.Is(err, fs.ErrPermission) && a.replaces != "" {
		err = f.Chown(-1, a.gid)
		if a.gid != a.shared || errors.Is(err, fs.ErrPermission) {
			return fault.New(fault.FailedPrecondition, "WRONG_STATE",
				fmt.Sprintf("%s belongs to user %d and group %d, who could not write it once the cache manager has replaced it", a.replaces, a.uid, a.gid),
				"let one group own the directory and all in it, with write permission (chgrp -R GROUP, chmod -R g+w, chmod g+s on the directories); "+
					"those who build and the cache manager's user should be in that group")
		}
		mode |= mode & 0o600 >> 3
	}
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return f.Chmod(mode) // whatever the umask
}

// makeDir makes a directory of the cache manager's own, with those above it, for the group of the
// cache directory, too, whatever the umask. One that is there stays as it is.
func makeDir(root *os.Root, name string) error {
	var at string
	for part := range strings.SplitSeq(name, "/") {
		at = strings.TrimPrefix(at+"/"+part, "/")
		err := root.Mkdir(at, ownDirMode)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := shareDir(root, at); err != nil {
			return err
		}
	}
	return nil
}

// shareDir gives a new directory the group of the cache directory, and its set-group-ID bit.
func shareDir(root *os.Root, name string) error {
	as, err := newAccess(root, ownDirMode)
	if err != nil {
		return err
	}
	if err := root.Chown(name, -1, as.gid); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	top, err := root.Stat(".")
	if err != nil {
		return err
	}
	return root.Chmod(name, ownDirMode|top.Mode()&fs.ModeSetgid)
}
