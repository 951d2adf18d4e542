package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// The calls that file systems may not have; tests take them away.
var (
	renameNew = func(from, to string) error {
		return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	}
	hardLink = os.Link
)

// unsupported reports whether a file system does not have a call.
func unsupported(err error) bool {
	for _, one := range []error{unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}

func (d *disk) giveBack(from, to string) (given, occupied bool, err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return false, false, err
	}
	if err = renameNew(from, to); unsupported(err) { // as on NFS and CephFS
		err = moveNew(from, to)
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

// moveNew moves a file or directory to where nothing is, without the call for that: a directory is
// made anew, with its files in it. Who looks meanwhile may see a part of these. It is fs.ErrExist
// when something is there.
func moveNew(from, to string) error {
	is, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if !is.IsDir() {
		if err := hardLink(from, to); err != nil {
			return err
		}
		return os.Remove(from)
	}
	if err := os.Mkdir(to, is.Mode().Perm()); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		err := moveNew(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrExist) { // what a push put there stays
			return err
		}
	}
	if err := os.Chtimes(to, is.ModTime(), is.ModTime()); err != nil {
		return err
	}
	return os.RemoveAll(from)
}

// probed is what was found out of a file system.
type probed struct {
	mu   sync.Mutex
	well bool
}

// probe finds out whether what a run takes can come back: whether the file system moves files and
// directories to where nothing is, and is that of the registry's files, too.
func (d *disk) probe() error {
	d.probed.mu.Lock()
	defer d.probed.mu.Unlock()
	if d.probed.well {
		return nil
	}
	if err := d.oneDevice(); err != nil {
		return err
	}
	dir := filepath.Join(d.root, ownDir, "probe-"+uuid.NewString())
	err := d.withRoom(func() error {
		err := d.tryMoves(dir)
		if errors.Is(err, unix.ENOSPC) { // what there is of it is in the way of another try
			_ = os.RemoveAll(dir)
		}
		return err
	})
	if removed := d.remove(context.Background(), dir); err == nil {
		err = removed
	}
	if err != nil {
		return fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE",
			fmt.Sprintf("the file system of %s moves nothing to where nothing is (renameat2 with RENAME_NOREPLACE, link): what a run removes could not come back", d.root),
			"put the registry's storage on a file system that has one of these calls, such as ext4, XFS, NFS or CephFS; until then the janitor removes nothing")
	}
	d.probed.well = true
	return nil
}

// tryMoves tries what has to work, in a directory.
func (d *disk) tryMoves(dir string) error {
	from := filepath.Join(dir, "from", "file")
	if err := os.MkdirAll(filepath.Dir(from), 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(from, nil, 0o600); err != nil {
		return err
	}
	for _, move := range []struct{ from, to string }{{from, from + "2"}, {filepath.Dir(from), filepath.Join(dir, "to")}} {
		given, _, err := d.giveBack(move.from, move.to)
		if err == nil && !given {
			err = fmt.Errorf("%s was not moved to %s", move.from, move.to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// oneDevice is an error when the registry's blobs are on another file system than the quarantine:
// they cannot be moved there.
func (d *disk) oneDevice() error {
	own, err := d.stat(d.root + "/.")
	if err != nil {
		return err
	}
	for _, dir := range []string{"blobs", "repositories"} {
		path := filepath.Join(d.root, layout, dir)
		is, err := d.stat(path + "/.")
		if err != nil {
			return err
		}
		if is.there && is.inode.device != own.inode.device {
			return fault.New(fault.FailedPrecondition, "WRONG_STATE",
				fmt.Sprintf("%s is on another file system than %s: what a run removes could not be moved to the quarantine", path, d.root),
				"keep the registry's storage on one file system; until then the janitor removes nothing")
		}
	}
	return nil
}
