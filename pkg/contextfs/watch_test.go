package contextfs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"testing"
	"testing/fstest"
	"testing/iotest"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// files are those of a map, some of which cannot be read.
type files struct {
	fstest.MapFS
	broken map[string]error
}

func (f files) Walk(_ context.Context, target string, fn fs.WalkDirFunc) error {
	return fs.WalkDir(f.MapFS, target, fn)
}

func (f files) Open(name string) (io.ReadCloser, error) {
	if err := f.broken[name]; err != nil {
		return io.NopCloser(iotest.ErrReader(err)), nil
	}
	return f.MapFS.Open(name)
}

// The first file that cannot be read ends the solve, with its reason; those that
// can be are as they were.
func TestWatch(t *testing.T) {
	own := fault.New(fault.NotFound, "NOT_FOUND", "lost", "send it again")
	f := files{fstest.MapFS{"good": {Data: []byte("content")}}, map[string]error{"bad": io.ErrClosedPipe, "lost": own}}
	for name, c := range map[string]struct {
		open   []string
		reason string
		cause  error
	}{
		"all are there": {open: []string{"good"}},
		"does not open": {[]string{"good", "missing", "bad"}, "SOURCE_NOT_FOUND", fs.ErrNotExist},
		"does not read": {[]string{"bad", "missing"}, "SOURCE_NOT_FOUND", io.ErrClosedPipe},
		"says why":      {[]string{"lost"}, "NOT_FOUND", own},
	} {
		t.Run(name, func(t *testing.T) {
			var w Watch
			ctx, cancel := w.Begin(t.Context())
			defer cancel()
			for _, name := range c.open {
				file, err := w.Of(f).Open(name)
				if err != nil {
					t.Fatal(err)
				}
				data, err := io.ReadAll(file)
				if good := name == "good"; good != (err == nil) || good && string(data) != "content" {
					t.Errorf("%s: %q, %v", name, data, err)
				}
			}
			failed, _ := errors.AsType[*fault.Error](w.Failed())
			if c.reason == "" {
				if failed != nil || ctx.Err() != nil {
					t.Errorf("failed with %v, context %v", failed, ctx.Err())
				}
				return
			}
			if failed == nil || failed.Reason != c.reason || !errors.Is(failed, c.cause) || ctx.Err() == nil {
				t.Errorf("failed with %v, context %v", failed, ctx.Err())
			}
		})
	}
}

// A file that failed before the solve began ends it at once.
func TestFailedBeforeTheSolve(t *testing.T) {
	var w Watch
	file, _ := w.Of(files{}).Open("missing")
	if _, err := io.ReadAll(file); err == nil {
		t.Fatal("read")
	}
	ctx, cancel := w.Begin(t.Context())
	defer cancel()
	if ctx.Err() == nil {
		t.Error("the solve goes on")
	}
}
