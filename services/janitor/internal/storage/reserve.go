package storage

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// On a full file system nothing can be freed without a little room: for the lock, for the journal,
// and for the directories that things are moved to. That much is kept in a file, and given up when
// the room is needed.
const (
	reserveBytes = 1 << 20
	// leastFree is how much must be free for the reserve to be made.
	leastFree = 8 * reserveBytes
)

// Low reports whether the file system is nearly full: a run may not get the room that it needs.
func (s *Storage) Low() (bool, error) {
	is, err := s.files.disk()
	return err == nil && is.Total > 0 && is.Free < reserveBytes, err
}

// Reserve keeps the room that a run needs on a full file system, if it is not kept and there is
// enough. SpendReserve gives it up.
func (s *Storage) Reserve() error {
	if d, is := s.files.(*disk); is {
		return d.reserve()
	}
	return nil
}

// SpendReserve gives up the room that Reserve keeps.
func (s *Storage) SpendReserve() {
	if d, is := s.files.(*disk); is {
		d.spendReserve()
	}
}

func (d *disk) reservePath() string { return filepath.Join(d.root, ownDir, "reserve") }

func (d *disk) reserve() error {
	if _, err := os.Stat(d.root); err != nil {
		return nil //nolint:nilerr // nothing was pushed yet
	}
	if is, err := os.Stat(d.reservePath()); err == nil && is.Size() == reserveBytes {
		return nil
	}
	if is, err := d.disk(); err != nil || is.Free < leastFree {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(d.reservePath()), 0o750); err != nil {
		return denied(err)
	}
	file, err := os.Create(d.reservePath())
	if err != nil {
		return denied(err)
	}
	err = unix.Fallocate(int(file.Fd()), 0, 0, reserveBytes)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = file.Write(make([]byte, reserveBytes))
	}
	if err = errors.Join(err, file.Close()); err != nil {
		d.spendReserve() // half of it says nothing
		return denied(err)
	}
	return nil
}

// spendReserve reports whether there was something to give up.
func (d *disk) spendReserve() bool { return os.Remove(d.reservePath()) == nil }

// withRoom does something that takes room, again after the reserve was given up when there is none.
func (d *disk) withRoom(do func() error) error {
	err := do()
	if (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && d.spendReserve() {
		err = do()
	}
	return err
}
