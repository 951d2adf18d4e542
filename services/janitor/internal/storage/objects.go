package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/registry/storage/driver"

	"github.com/kilnbuild/kiln/services/janitor/internal/check"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// objects are those of a registry's storage driver (distribution v3,
// registry/storage/driver), of S3 for one. They have no directories, and to move one is to
// copy and to delete it: what is written between the two is not seen, and has to be looked
// for afterwards.
type objects struct {
	driver driver.StorageDriver
	mu     sync.Mutex // the lock, in this process
}

// NewObjects returns the storage that a driver of the registry reaches; name is for people.
func NewObjects(d driver.StorageDriver, name string) *Storage {
	return of(&objects{driver: d}, "/", name)
}

// How long one call may take, and the copy of one object.
const (
	callTimeout = time.Minute
	copyTimeout = 30 * time.Minute // of some 100 GB
)

func (o *objects) atomic() bool { return false }

// settled is more than the second by which times are told, for the clock is the storage's own:
// S3 answers to none that is a quarter of an hour from it (RequestTimeTooSkewed).
func (o *objects) settled() time.Duration { return 15*time.Minute + 2*time.Second }

// lag is none: S3 tells of what was written before.
func (o *objects) lag() time.Duration { return 0 }

func (o *objects) call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), callTimeout)
}

// ignoreMissing makes that something is not there no error.
func ignoreMissing(err error) error {
	if errors.As(err, &driver.PathNotFoundError{}) {
		return nil
	}
	return err
}

func (o *objects) list(dir string) (is directory, _ error) {
	ctx, cancel := o.call()
	defer cancel()
	paths, err := o.driver.List(ctx, dir)
	for _, p := range paths {
		is.add(path.Base(p))
	}
	return is, ignoreMissing(err)
}

func (o *objects) names(dir string) ([]string, error) {
	is, err := o.list(dir)
	return is.all(), err
}

// add adds a name.
func (d *directory) add(name string) {
	if h, ok := content.SumOf(name); ok {
		d.hashes = append(d.hashes, h)
	} else {
		d.names = append(d.names, name)
	}
}

func (o *objects) stat(path string) (stat, error) {
	ctx, cancel := o.call()
	defer cancel()
	info, err := o.driver.Stat(ctx, path)
	if err != nil {
		return stat{}, ignoreMissing(err)
	}
	return statOf(info), nil
}

func statOf(info driver.FileInfo) stat {
	if info.IsDir() {
		return stat{there: true}
	}
	return stat{there: true, size: info.Size(), modified: info.ModTime()}
}

func (o *objects) within(dir string, do func(place) error) error { return do(below{o, dir}) }

func (o *objects) read(path string, most int) ([]byte, error) {
	ctx, cancel := o.call()
	defer cancel()
	in, err := o.driver.Reader(ctx, path, 0)
	if err != nil {
		return nil, gone(path, err)
	}
	text, err := io.ReadAll(io.LimitReader(in, int64(most)+1))
	return text, errors.Join(err, in.Close())
}

func (o *objects) with(path string, most int, do func(text []byte) bool) error {
	return readWith(o, path, most, do)
}

func gone(path string, err error) error {
	if err != nil && ignoreMissing(err) == nil {
		return fmt.Errorf("%s: %w", path, errGone)
	}
	return err
}

func (o *objects) open(path string) (io.ReadCloser, error) {
	in, err := o.driver.Reader(context.Background(), path, 0) // its reader bounds it
	return in, gone(path, err)
}

// disk has no bound. It is an error when the storage does not answer.
func (o *objects) disk() (check.Disk, error) {
	ctx, cancel := o.call()
	defer cancel()
	_, err := o.driver.List(ctx, "/")
	return check.Disk{}, ignoreMissing(err)
}

func (o *objects) writable() error {
	ctx, cancel := o.call()
	defer cancel()
	probe := path.Join("/", ownDir, "probe")
	if err := o.driver.PutContent(ctx, probe, []byte("may be removed\n")); err != nil {
		return denied(err)
	}
	return nil
}

func (o *objects) put(path string, text []byte) error {
	is, err := o.stat(path)
	if err != nil || is.there {
		return err
	}
	return o.write(path, text)
}

func (o *objects) write(path string, text []byte) error {
	ctx, cancel := o.call()
	defer cancel()
	if err := o.driver.PutContent(ctx, path, text); err != nil {
		return denied(err)
	}
	return nil
}

func (o *objects) move(from, to string) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), copyTimeout)
	defer cancel()
	err := o.driver.Move(ctx, from, to)
	if err != nil && ignoreMissing(err) == nil {
		return false, nil
	}
	return err == nil, err
}

func (o *objects) take(from, to string) (taken bool, _ error) {
	all, err := o.below(from)
	if err != nil {
		return false, err
	}
	for _, p := range all {
		moved, err := o.move(p, to+strings.TrimPrefix(p, from))
		if err != nil {
			return taken, err
		}
		taken = taken || moved
	}
	return taken, nil
}

// below are an object, or those of a directory.
func (o *objects) below(dir string) (all []string, _ error) {
	is, err := o.driverStat(dir)
	switch {
	case err != nil || is == nil:
		return nil, err
	case !is.IsDir():
		return []string{dir}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), copyTimeout)
	defer cancel()
	err = o.driver.Walk(ctx, dir, func(info driver.FileInfo) error {
		if !info.IsDir() {
			all = append(all, info.Path())
		}
		return nil
	})
	return all, ignoreMissing(err)
}

func (o *objects) driverStat(path string) (driver.FileInfo, error) {
	ctx, cancel := o.call()
	defer cancel()
	info, err := o.driver.Stat(ctx, path)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	return info, nil
}

// takeIf looks again after it has copied the object. What is written between that and its
// deletion is found by Wanted, and by what a push writes first.
func (o *objects) takeIf(from, to string, is func(stat, string) bool) (bool, error) {
	text, err := o.read(from, maxLink)
	if errors.Is(err, errGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if there, err := fits(o, from, is); err != nil || !there {
		return false, err
	}
	if err := o.write(to, text); err != nil {
		return false, err
	}
	there, err := fits(o, from, is)
	if err == nil && there {
		return true, o.remove(context.Background(), from)
	}
	return false, errors.Join(err, o.remove(context.Background(), to)) // a newer one is there
}

func (o *objects) giveBack(from, to string) (given, occupied bool, err error) {
	is, err := o.stat(from)
	if err != nil || !is.there {
		return false, false, err
	}
	at, err := o.stat(to)
	if err != nil || at.there {
		return false, at.there, err
	}
	given, err = o.take(from, to)
	return given, false, err
}

// touch does nothing: what was copied was written as it was.
func (o *objects) touch(string, time.Time) error { return nil }

func (o *objects) remove(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	if err := ignoreMissing(o.driver.Delete(ctx, path)); err != nil {
		return denied(err)
	}
	return nil
}

// hide leaves what is to be removed where it is: to move it is more work than to remove it.
func (o *objects) hide(_, to string) error { return o.write(to, []byte("to be removed\n")) }

func (o *objects) tidy(string, string) {}

func (o *objects) tidyBelow(string, string) error { return nil }
