package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/filelock"
)

const (
	// guardWithin bounds the wait for .kiln/lock, which is held for moments.
	guardWithin = 10 * time.Second
	// exportsWithin bounds the wait for a moment in which nothing is exported.
	exportsWithin = 30 * time.Second
	// lockEvery is how often a lock is tried.
	lockEvery = 5 * time.Millisecond
)

// ownMode is that of what the cache manager makes in the directory: for its group too,
// which all who use the directory are of.
const (
	ownMode    = 0o664
	ownDirMode = 0o775
)

// Lock makes this cache manager the only one that runs on the directory, of all that
// can see it, until Close. One that another has is an ALREADY_EXISTS fault.
func (d *Directory) Lock(ctx context.Context) (context.Context, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := context.WithoutCancel(ctx) // the kernel takes the lock from nobody
	if d.running != nil {
		return held, nil
	}
	root, err := d.open()
	if missing(err) {
		return held, nil // nothing to run on
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }() // opened for reading
	file, err := lockFile(root, runFile)
	if errors.Is(err, filelock.ErrLocked) {
		return nil, fault.New(fault.AlreadyExists, "ALREADY_EXISTS", fmt.Sprintf("another cache manager keeps directory %s", d.opts.Path),
			"ask that one; this one takes over with its next run when it has ended")
	}
	if err != nil {
		return nil, d.explain(err, "locked")
	}
	d.running = file
	return held, nil
}

// lockFile takes the lock of a file, which it makes if need be, without waiting.
func lockFile(root *os.Root, name string) (*os.File, error) {
	if name != exportLock {
		if err := makeDir(root, ownDir); err != nil {
			return nil, err
		}
	}
	file, err := root.OpenFile(name, os.O_RDONLY|os.O_CREATE|os.O_EXCL, ownMode)
	if err == nil {
		err = openToOthers(root, file)
	} else if errors.Is(err, os.ErrExist) {
		file, err = root.Open(name)
	}
	if err == nil {
		err = filelock.TryFile(file)
	}
	if err != nil && file != nil {
		_ = file.Close() // it was only to be locked
	}
	return file, err
}

// openToOthers lets BuildKit's clients of other users open a new file, whatever the umask.
func openToOthers(root *os.Root, file *os.File) error {
	as, err := newAccess(root, ownMode)
	if err != nil {
		return err
	}
	return as.give(file)
}

// await takes the lock of a file within a time.
func (d *Directory) await(ctx context.Context, root *os.Root, name string, within time.Duration) (*os.File, error) {
	end := time.Now().Add(within)
	for {
		file, err := lockFile(root, name)
		if !errors.Is(err, filelock.ErrLocked) {
			return file, d.explain(err, "locked")
		}
		if time.Now().After(end) {
			return nil, fault.New(fault.Unavailable, "CACHE_UNAVAILABLE", fmt.Sprintf("directory %s was in use for %s without a pause", d.opts.Path, within),
				"nothing is lost by it: the next run tries again; if it stays so, see who holds "+d.opts.Path+"/"+name+" (lslocks shows it)")
		}
		select {
		case <-time.After(lockEvery):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// guarded does something while nobody else leases or moves.
func (d *Directory) guarded(ctx context.Context, root *os.Root, do func() error) error {
	file, err := d.await(ctx, root, guardFile, guardWithin)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // which unlocks
	return d.explain(do(), "kept")
}

// between does something while nothing is exported to the directory and nobody else
// leases or moves. It must be done in moments: exports wait.
func (d *Directory) between(ctx context.Context, root *os.Root, do func() error) error {
	file, err := d.await(ctx, root, exportLock, exportsWithin)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // which unlocks
	return d.guarded(ctx, root, do)
}
