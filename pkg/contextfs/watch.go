// Package contextfs watches the reading of a build's context while it is sent to a
// daemon.
//
// BuildKit's sender (github.com/tonistiigi/fsutil, send.go) does not: in the place
// of a file that does not open it sends an empty one, with which the build goes on;
// and when the reading of one fails it tells the daemon nothing, which then waits
// for the rest without end.
package contextfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Files are the files of a context, with the methods of BuildKit's fsutil.FS.
type Files interface {
	Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error
	Open(name string) (io.ReadCloser, error)
}

// Watch ends a solve when a file of its contexts cannot be read, and knows why. The
// zero value is ready.
type Watch struct {
	mu  sync.Mutex
	err error // of the first that failed
	end context.CancelFunc
}

// Begin returns a context for the solve, which ends when a file cannot be read.
func (w *Watch) Begin(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = cancel
	if w.err != nil {
		cancel()
	}
	return ctx, cancel
}

// Failed returns why a file could not be read, a SOURCE_NOT_FOUND fault unless the
// files had one of their own, or nil.
func (w *Watch) Failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *Watch) fail(name string, err error) {
	if _, ok := errors.AsType[*fault.Error](err); !ok {
		err = fault.Wrap(err, fault.FailedPrecondition, "SOURCE_NOT_FOUND", fmt.Sprintf("the context's file %q cannot be read", name),
			"leave the context as it is while it is built, and let the user read it who sends it")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	if w.err = err; w.end != nil {
		w.end()
	}
}

// Of returns files whose reading is watched.
func (w *Watch) Of(files Files) Files { return watched{files, w} }

type watched struct {
	Files
	watch *Watch
}

// Open implements Files. A file that cannot be opened fails when it is read, so that
// nothing is sent in its place.
func (w watched) Open(name string) (io.ReadCloser, error) {
	file, err := w.Files.Open(name)
	if err != nil {
		file = io.NopCloser(failing{err})
	}
	return watchedFile{file, name, w.watch}, nil
}

// failing is a file that cannot be read.
type failing struct{ err error }

// Read implements io.Reader.
func (f failing) Read([]byte) (int, error) { return 0, f.err }

type watchedFile struct {
	io.ReadCloser
	name  string
	watch *Watch
}

// Read implements io.Reader.
func (w watchedFile) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		w.watch.fail(w.name, err)
	}
	return n, err
}
