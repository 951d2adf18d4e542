// Package wholefile writes files so that who reads them finds the old text or the new one,
// whole.
package wholefile

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// Replace writes a file with a mode, in place of another, if there is one: then the owner and
// the mode stay as they were.
func Replace(path string, text []byte, mode os.FileMode) error {
	was, err := os.Stat(path)
	if err == nil {
		mode = was.Mode().Perm()
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temporary.Name()) }() // unless it was renamed
	_, err = temporary.Write(text)
	err = errors.Join(err, temporary.Chmod(mode), keepOwner(temporary, was), temporary.Sync(), temporary.Close())
	if err != nil {
		return err
	}
	return os.Rename(temporary.Name(), path)
}

// keepOwner gives a file the owner that another has; nothing when there is none.
func keepOwner(file *os.File, other os.FileInfo) error {
	if other == nil || os.Geteuid() != 0 {
		return nil
	}
	st, ok := other.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return file.Chown(int(st.Uid), int(st.Gid))
}
