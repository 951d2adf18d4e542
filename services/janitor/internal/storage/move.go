package storage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// take moves a file or directory; false when it is not there.
func take(from, to string) (bool, error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return false, err
	}
	switch err := os.Rename(from, to); {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}

// giveBack moves a file or directory to where nothing is: what is there stays, and so does
// what was to be moved. It reports what became of it.
func giveBack(from, to string) (given, occupied bool, err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return false, false, err
	}
	err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not on this file system
		if err = os.Link(from, to); err == nil {
			err = os.Remove(from)
		}
	}
	switch {
	case err == nil:
		return true, false, nil
	case errors.Is(err, fs.ErrExist):
		return false, true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, false, nil
	}
	return false, false, err
}

// tidy removes empty directories, from one upwards, but not the last.
func tidy(dir, last string) {
	for dir != last && strings.HasPrefix(dir, last) && os.Remove(dir) == nil {
		dir = filepath.Dir(dir)
	}
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
