// Package filelock makes one process at a time the user of a directory.
package filelock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrLocked says that another process holds a lock.
var ErrLocked = errors.New("locked")

// TryLock takes the lock of a file, which it makes if need be, without waiting.
// It is the kernel's (flock(2)), and goes when the file is closed or this
// process ends, however it does.
func TryLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w", err)
	}
	if err := TryFile(file); err != nil {
		_ = file.Close() // it was only to be locked
		return nil, err
	}
	return file, nil
}

// TryFile takes the lock of an open file, as TryLock does.
func TryFile(file *os.File) error {
	switch err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return ErrLocked
	case err != nil:
		return fmt.Errorf("%s: %w", file.Name(), err)
	}
	return nil
}
