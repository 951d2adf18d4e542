package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/tonistiigi/fsutil"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// reading ends a solve when a file of its contexts cannot be read, and knows why.
// fsutil does neither: in the place of a file that does not open it sends an empty
// one, with which the build goes on; and when the reading of one fails it tells the
// daemon nothing, which then waits for the rest without end.
type reading struct {
	mu  sync.Mutex
	err error // of the first that failed
	end context.CancelFunc
}

// begin returns a context for the solve, which ends when a file cannot be read.
func (r *reading) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end = cancel
	if r.err != nil {
		cancel()
	}
	return ctx, cancel
}

// failed returns why a file could not be read, or nil.
func (r *reading) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *reading) fail(name string, err error) {
	if _, ok := errors.AsType[*fault.Error](err); !ok {
		err = fault.Wrap(err, fault.FailedPrecondition, "SOURCE_NOT_FOUND", fmt.Sprintf("the context's file %q cannot be read", name),
			"leave the context as it is while it is built, and let the builder's user read it")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	if r.err = err; r.end != nil {
		r.end()
	}
}

// of returns files whose reading is watched.
func (r *reading) of(files fsutil.FS) fsutil.FS { return watchedFS{files, r} }

type watchedFS struct {
	fsutil.FS
	reading *reading
}

// Open implements fsutil.FS. A file that cannot be opened fails when it is read, so
// that nothing is sent in its place.
func (w watchedFS) Open(name string) (io.ReadCloser, error) {
	file, err := w.FS.Open(name)
	if err != nil {
		file = io.NopCloser(failing{err})
	}
	return watchedFile{file, name, w.reading}, nil
}

// failing is a file that cannot be read.
type failing struct{ err error }

// Read implements io.Reader.
func (f failing) Read([]byte) (int, error) { return 0, f.err }

type watchedFile struct {
	io.ReadCloser
	name    string
	reading *reading
}

// Read implements io.Reader.
func (w watchedFile) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		w.reading.fail(w.name, err)
	}
	return n, err
}
