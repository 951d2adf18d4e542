package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/services/janitor/internal/check"
)

// disk are files of a file system.
type disk struct {
	root   string
	dirs   directories
	probed probed

	lagged sync.Once
	lags   time.Duration
}

func (d *disk) frozen(context.Context, string) (reader, error) { return d, nil }

func (d *disk) atomic() bool { return true }

func (d *disk) settled() time.Duration { return settled + d.lag() }

func (d *disk) list(dir string) (directory, error) { return d.dirs.read(dir, d.settled()) }

func (d *disk) names(dir string) ([]string, error) { return names(dir) }

func (d *disk) open(path string) (io.ReadCloser, error) { return os.Open(path) }

func (d *disk) disk() (check.Disk, error) {
	// The root itself may not be there before the first push; its parent must be.
	at := d.root
	if _, err := os.Stat(at); errors.Is(err, fs.ErrNotExist) {
		at = filepath.Dir(at)
	}
	for _, dir := range []string{at, filepath.Join(d.root, layout, "blobs"), filepath.Join(d.root, layout, "repositories")} {
		if err := readable(dir); err != nil && (dir == at || !errors.Is(err, fs.ErrNotExist)) {
			return check.Disk{}, err
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return check.Disk{}, fmt.Errorf("statfs %s: %w", at, err)
	}
	block := int64(st.Bsize) //nolint:unconvert // Not on every system an int64.
	return check.Disk{Total: int64(st.Blocks) * block, Free: int64(st.Bavail) * block}, nil
}

// readable is nil for a directory whose names can be listed.
func readable(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	_, err = f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

func (d *disk) writable() error {
	if _, err := os.Stat(d.root); errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was pushed yet
	}
	if err := unix.Access(d.root, unix.W_OK|unix.X_OK); err != nil {
		return denied(fmt.Errorf("%s: %w", d.root, err))
	}
	return nil
}

func (d *disk) put(path string, text []byte) error {
	temporary := path + "." + uuid.NewString() + ".tmp"
	if err := d.withRoom(func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(temporary, text, 0o644) //nolint:gosec // as the registry does
	}); err != nil {
		return denied(err)
	}
	_, occupied, err := d.giveBack(temporary, path)
	if occupied || err != nil {
		err = errors.Join(err, os.Remove(temporary))
	}
	return err
}

func (d *disk) take(from, to string) (bool, error) {
	err := d.withRoom(func() error {
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.Rename(from, to)
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}

// takeIf looks again at what it has moved: so nothing that was written meanwhile is lost.
func (d *disk) takeIf(from, to string, is func(stat, string) bool) (bool, error) {
	if there, err := fits(d, from, is); err != nil || !there {
		return false, err
	}
	if taken, err := d.take(from, to); err != nil || !taken {
		return false, err
	}
	same, err := fits(d, to, is)
	if err != nil || same {
		return same, err
	}
	if _, occupied, err := d.giveBack(to, from); err != nil || !occupied {
		return false, err
	}
	return false, os.Remove(to) // a newer one is there
}

// fits reports whether a small file is there and as it should be.
func fits(r reader, path string, is func(stat, string) bool) (bool, error) {
	text, err := r.read(path, maxLink)
	if errors.Is(err, errGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	file, err := r.stat(path)
	return err == nil && file.there && is(file, strings.TrimSpace(string(text))), err
}

func (d *disk) touch(path string, at time.Time) error { return os.Chtimes(path, at, at) }

// remove removes the branches of a large tree at once.
func (d *disk) remove(ctx context.Context, path string) error {
	blobs := filepath.Join(path, "tree", "blobs", sha256) // of a quarantine
	branches, err := names(blobs)
	if err != nil {
		return err
	}
	err = inParallel(ctx, len(branches), func(i int) error { return os.RemoveAll(filepath.Join(blobs, branches[i])) })
	if err == nil {
		err = os.RemoveAll(path)
	}
	if err != nil {
		return denied(err)
	}
	return nil
}

func (d *disk) hide(dir, to string) error {
	_, err := d.take(dir, to)
	return err
}

func (d *disk) tidy(dir, last string) {
	for dir != last && strings.HasPrefix(dir, last) && os.Remove(dir) == nil {
		dir = filepath.Dir(dir)
	}
}

func (d *disk) tidyBelow(dir, last string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := d.tidyBelow(filepath.Join(dir, e.Name()), filepath.Join(dir, e.Name())); err != nil {
				return err
			}
			_ = os.Remove(filepath.Join(dir, e.Name())) // if it is empty
		}
	}
	d.tidy(dir, last)
	return nil
}
