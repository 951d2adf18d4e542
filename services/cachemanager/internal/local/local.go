// Package local keeps the directories that BuildKit's type=local cache writes.
//
// Such a directory is an OCI image layout: index.json names a manifest for each tag,
// and an export replaces the manifest of its tag and deletes nothing, so that what
// nothing reaches any more piles up. Any number of BuildKit clients read and write it
// at once, of which the cache manager knows only what they leave there. What it must
// know besides is below ".kiln" in the directory, so that all cache managers of a
// directory that is shared know the same, and one that was killed leaves it behind:
//
//	.kiln/lock        held for moments: one looks, leases or moves at a time
//	.kiln/run.lock    held by the cache manager that runs on the directory
//	.kiln/leases/     one file for each lease
//	.kiln/ledger.json when tags were used, and since when blobs are orphans
//	.kiln/trash/T/    blobs that nothing reached at time T; put back if something does
//	.kiln/corrupt/T/  files that a repair took out at time T
//
// How a blob goes, and why nothing is lost:
//
//   - It is an orphan: no manifest of index.json reaches it, nor one that a lease
//     holds. It has been for the grace, and is that old; or the disk is nearly full.
//   - No export is under way: since v0.34, BuildKit's client holds a shared lock on
//     cache.lock from its first write to the new index (client/solve.go,
//     cacheExportStore), for it relies on what it finds. An older client with a lease
//     keeps what is newer than the lease, and what it reuses is put back when the lease
//     ends.
//   - It is renamed into the trash and, after the grace again, removed. Whoever takes a
//     lease has all that its tag reaches put back first.
//
// Each step is one rename or one removal: a kill between two leaves a state that the
// next pass goes on from.
package local

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Options is what a directory is made of.
type Options struct {
	Path string
	// Grace is how long a blob must have been an orphan before it goes to the trash,
	// and how long it stays there.
	Grace time.Duration
	Log   *slog.Logger
}

// Directory is a type=local cache directory. It need not be there yet.
type Directory struct {
	opts Options
	now  func() time.Time // of the file system's clock: not the one that ages are counted to

	began time.Time // when this process began to keep leases

	mu      sync.Mutex
	running *os.File         // .kiln/run.lock while this process has it
	waiting map[string]Lease // of a directory that is not there yet, by id
}

// New returns the directory of the options.
func New(opts Options) *Directory {
	return &Directory{opts: opts, now: time.Now, began: time.Now(), waiting: map[string]Lease{}}
}

// Ref names the directory's cache.
func (d *Directory) Ref() cache.Ref { return cache.Ref{Directory: d.opts.Path} }

// At reports whether a path leads to the directory, through links or a bind mount, too.
func (d *Directory) At(path string) bool {
	a, restA := nearest(d.opts.Path)
	b, restB := nearest(path)
	return a != nil && b != nil && restA == restB && os.SameFile(a, b)
}

// nearest returns the nearest directory above a path that is there, and the rest of the path.
func nearest(path string) (info fs.FileInfo, rest string) {
	for at := filepath.Clean(path); ; at = filepath.Dir(at) {
		if info, err := os.Stat(at); err == nil {
			return info, rest
		} else if !missing(err) || at == filepath.Dir(at) {
			return nil, ""
		}
		rest = filepath.Join(filepath.Base(at), rest)
	}
}

// Close lets go of the directory's lock.
func (d *Directory) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running == nil {
		return nil
	}
	err := d.running.Close()
	d.running = nil
	return err
}

// Where things are in the directory.
const (
	indexFile  = "index.json"
	indexLock  = "index.json.lock"
	exportLock = "cache.lock"
	blobsDir   = "blobs"
	ingestDir  = "ingest"
	ownDir     = ".kiln"
	guardFile  = ownDir + "/lock"
	runFile    = ownDir + "/run.lock"
	leasesDir  = ownDir + "/leases"
	ledgerFile = ownDir + "/ledger.json"
	trashDir   = ownDir + "/trash"
	corruptDir = ownDir + "/corrupt"
)

// blobPath is where a blob is.
func blobPath(d digest.Digest) string {
	return blobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// open opens the directory; one that is not there is fs.ErrNotExist.
func (d *Directory) open() (*os.Root, error) {
	root, err := os.OpenRoot(d.opts.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, d.explain(err, "opened")
	}
	return root, err
}

// explain makes an error of the file system into one that says what to do.
func (d *Directory) explain(err error, verb string) error {
	if known, ok := errors.AsType[*fault.Error](err); ok {
		return known
	}
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE", fmt.Sprintf("directory %s cannot be %s", d.opts.Path, verb),
			"let the cache manager's user read and write it: its group should own it, with mode 2775, and those who build should be of that group")
	default:
		return fault.Wrap(err, fault.Unavailable, "CACHE_UNAVAILABLE", fmt.Sprintf("directory %s cannot be %s", d.opts.Path, verb),
			"check the disk that it is on")
	}
}

// replace writes a file whole or not at all, as long as the host stays up; sync may make
// it so also when it does not.
func replace(root *os.Root, name string, as access, body []byte, sync func(*os.File) error) (err error) {
	temporary := name + "." + rand.Text()
	f, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Remove(temporary))
		}
	}()
	_, err = f.Write(body)
	if err == nil {
		err = as.give(f)
	}
	if err == nil {
		err = sync(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return root.Rename(temporary, name)
}

// toDisk makes a file outlive the host's going down.
func toDisk(f *os.File) error { return f.Sync() }

// toKernel makes a file outlive this process.
func toKernel(*os.File) error { return nil }

// replaceOwn replaces a file of the cache manager's own.
func replaceOwn(root *os.Root, name string, body []byte, sync func(*os.File) error) error {
	as, err := newAccess(root, ownMode)
	if err != nil {
		return err
	}
	return replace(root, name, as, body, sync)
}

// stampDir is the directory of a moment, below the trash.
func stampDir(below string, t time.Time) string {
	return below + "/" + strconv.FormatInt(t.UnixNano(), 10)
}

// stampOf reads the name that stampDir gave.
func stampOf(name string) (time.Time, bool) {
	nano, err := strconv.ParseInt(name, 10, 64)
	return time.Unix(0, nano), err == nil
}

// missing reports whether an error says that something is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
