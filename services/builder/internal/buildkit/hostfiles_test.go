package buildkit

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
	"github.com/kilnbuild/kiln/services/builder/internal/hostdir"
)

// promptly fails the test when f takes long.
func promptly(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it blocks")
	}
}

func TestPrepare_RefusesDockerfilesThatAreNoRegularFiles(t *testing.T) {
	for name, put := range map[string]func(t *testing.T, path string) error{
		"a FIFO":      func(_ *testing.T, path string) error { return syscall.Mkfifo(path, 0o644) },
		"a directory": func(_ *testing.T, path string) error { return os.Mkdir(path, 0o755) },
		"a socket": func(t *testing.T, path string) error {
			l, err := net.Listen("unix", path)
			if err == nil {
				t.Cleanup(func() { _ = l.Close() })
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := put(t, filepath.Join(dir, "Dockerfile")); err != nil {
				t.Fatal(err)
			}
			promptly(t, func() {
				_, err := prepared(t, hostdir.Roots{dir}, build.Spec{
					Context: build.Context{Directory: &build.DirectoryContext{Path: dir}}, Dockerfile: build.Dockerfile{Path: "Dockerfile"},
				})
				if own, ok := errors.AsType[*fault.Error](err); !ok || own.Kind != fault.InvalidArgument || own.Field != "spec.dockerfile.path" {
					t.Error(err)
				}
			})
		})
	}
}

func TestPrepare_RefusesAFIFOAsDirectory(t *testing.T) {
	root := t.TempDir()
	fifo := filepath.Join(root, "fifo")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	promptly(t, func() {
		for _, c := range []build.Context{{Directory: &build.DirectoryContext{Path: fifo}}, {OCILayout: &build.OCILayoutContext{Path: fifo}}} {
			if _, err := prepared(t, hostdir.Roots{root}, build.Spec{Context: c, Dockerfile: build.Dockerfile{Inline: "FROM a"}}); fault.KindOf(err) != fault.InvalidArgument {
				t.Error(err)
			}
		}
	})
}

// hanging is a store whose files do not open until it is released, as on a network
// file system whose server is gone.
type hanging struct {
	Contexts
	released chan struct{}
}

func (h hanging) Open(string, string) (*contextstore.Tree, error) {
	<-h.released
	return nil, errors.New("released")
}

func TestAccept_EndsWithItsCallWhenFilesBlock(t *testing.T) {
	root := t.TempDir()
	store := hanging{released: make(chan struct{})}
	d := &Daemon{
		reading: newReaders(4, 2),
		opts:    Options{Roots: hostdir.Roots{root}, Contexts: store, Guard: guard.New(guard.Policy{}, slog.New(slog.DiscardHandler))},
	}
	hung := build.Spec{
		Context:       build.Context{Directory: &build.DirectoryContext{Path: root}},
		NamedContexts: map[string]build.Context{"x": {Uploaded: &build.UploadedContext{}}},
		Project:       "hung",
	}
	for range 6 { // more than may block at once, of this project and of all
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := d.Accept(ctx, hung); fault.KindOf(err) != fault.DeadlineExceeded {
			t.Error(err)
		}
		cancel()
	}
	if _, err := d.Accept(t.Context(), inlineSpec("FROM a")); err != nil {
		t.Errorf("a build that reads no files of the host: %v", err)
	}
	other := build.Spec{
		Context: build.Context{Directory: &build.DirectoryContext{Path: root}}, Dockerfile: build.Dockerfile{Inline: "FROM a"}, Project: "other",
	}
	promptly(t, func() { // its files are there
		if _, err := d.Accept(t.Context(), other); err != nil {
			t.Errorf("a build of another project: %v", err)
		}
	})
	close(store.released)
	promptly(t, func() {
		for range cap(d.reading.all) {
			d.reading.all <- struct{}{}
		}
	})
	d.reading.mu.Lock()
	defer d.reading.mu.Unlock()
	if n := len(d.reading.tenants); n != 0 {
		t.Errorf("%d projects are remembered without a job", n)
	}
}
