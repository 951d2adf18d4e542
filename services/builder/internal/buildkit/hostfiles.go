package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/tonistiigi/fsutil"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/hostdir"
)

// Files of this host may be on a network file system whose server is gone. A call
// that reads one then blocks in the kernel, where nothing ends it.
const (
	// acceptTimeout bounds how long the files of a request may take to open.
	acceptTimeout = 30 * time.Second
	// maxReading bounds how many jobs may open files of this host at once, those that
	// are blocked included; maxReadingEach those of one project.
	maxReading     = 64
	maxReadingEach = 16
)

// prepareWithin is prepare, bounded by ctx. A job whose files block is abandoned, and
// closed when they no longer do. Jobs that read no files of this host are not in the
// way of those that do.
func (d *Daemon) prepareWithin(ctx context.Context, id string, spec build.Spec) (*job, error) {
	if !readsHost(spec) {
		return d.prepare(id, spec)
	}
	release, err := d.reading.acquire(ctx, spec.Project)
	if err != nil {
		return nil, blocked(ctx)
	}
	done := make(chan preparation)
	lifecycle.Go(ctx, func(ctx context.Context) {
		defer release()
		var p preparation
		p.err = lifecycle.Protect(ctx, func(context.Context) (err error) {
			p.job, err = d.prepare(id, spec)
			return err
		})
		select {
		case done <- p:
		case <-ctx.Done():
			if p.job != nil {
				_ = p.job.close() // nobody waits for its error
			}
		}
	})
	select {
	case p := <-done:
		return p.job, p.err
	case <-ctx.Done():
		return nil, blocked(ctx)
	}
}

// preparation is what came of prepare in a goroutine of its own.
type preparation struct {
	job *job
	err error
}

// blocked is the error of a job whose files did not open in time.
func blocked(ctx context.Context) error {
	if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	return fault.New(fault.DeadlineExceeded, "TIMED_OUT",
		"the files that the request names on the builder's host cannot be opened in time",
		"check the file system of the directory; a network file system may hang")
}

// readsHost reports whether a spec names files of this host.
func readsHost(spec build.Spec) bool {
	for _, c := range spec.Contexts() {
		if c.Directory != nil || c.OCILayout != nil {
			return true
		}
	}
	for _, entries := range [][]build.CacheEntry{spec.Cache.Imports, spec.Cache.Exports} {
		for _, entry := range entries {
			if entry.Type == localCache {
				return true
			}
		}
	}
	return false
}

// regularFS opens the regular files of a directory, and nothing else that has a name
// there.
type regularFS struct {
	fsutil.FS
	root *os.Root
}

// Open implements fsutil.FS.
func (f regularFS) Open(name string) (io.ReadCloser, error) {
	file, _, err := hostdir.OpenFile(f.root, filepath.FromSlash(name))
	if err != nil {
		return nil, fmt.Errorf("the context's file %q: %w", name, err)
	}
	return file, nil
}
