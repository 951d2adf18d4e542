package buildkit

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/kilnbuild/kiln/pkg/contextfs"
	"github.com/kilnbuild/kiln/pkg/fault"
)

// wire is one end of a transfer's stream.
type wire struct {
	ctx      context.Context
	from, to chan []byte
}

func (w wire) Context() context.Context { return w.ctx }

func (w wire) SendMsg(m any) error {
	data, err := m.(*fstypes.Packet).Marshal()
	if err != nil {
		return err
	}
	select {
	case w.to <- data:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

func (w wire) RecvMsg(m any) error {
	select {
	case data, ok := <-w.from:
		if !ok {
			return io.EOF
		}
		return m.(*fstypes.Packet).Unmarshal(data)
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// transfer sends files as to a daemon that has none, and returns where they arrived,
// and why one could not be read.
func transfer(t *testing.T, files fsutil.FS) (string, error) {
	t.Helper()
	var r contextfs.Watch
	bounded, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ctx, stop := r.Begin(bounded)
	defer stop()
	there, back := make(chan []byte, 100), make(chan []byte, 100)
	dest := t.TempDir()
	received := make(chan error, 1)
	go func() { received <- fsutil.Receive(ctx, wire{ctx, there, back}, dest, fsutil.ReceiveOpt{}) }()
	err := fsutil.Send(ctx, wire{ctx, back, there}, r.Of(files), nil)
	close(there)
	err = errors.Join(err, <-received)
	if bounded.Err() != nil {
		t.Error("the transfer did not end by itself")
	}
	if failed := r.Failed(); failed != nil {
		if err == nil {
			t.Error("the daemon has what it takes for the whole")
		}
		return dest, failed
	}
	return dest, err
}

// A file that cannot be read ends the transfer, and none is sent in its place.
func TestLostContentEndsTheTransfer(t *testing.T) {
	files := map[string]string{"a": "first", "b": "other"}
	dir := t.TempDir()
	tree := storedTreeIn(t, dir, files)
	dest, err := transfer(t, treeFS(tree))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dest, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*/*"))
	if err != nil || len(blobs) != 2 {
		t.Fatal(blobs, err)
	}
	damages := []func() error{
		func() error { return os.WriteFile(blobs[0], []byte("twist"), 0o600) },
		func() error { return os.Truncate(blobs[1], 1) },
		func() error { return errors.Join(os.RemoveAll(blobs[0]), os.RemoveAll(blobs[1])) },
	}
	for _, damage := range damages {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		_, err = transfer(t, treeFS(tree))
		if lost, ok := errors.AsType[*fault.Error](err); !ok || lost.Reason != "NOT_FOUND" {
			t.Errorf("err = %v, want that the content was lost", err)
		}
	}
}

// vanishing is a directory whose file goes once it was seen.
type vanishing struct {
	fsutil.FS
	path string
}

func (v vanishing) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	return v.FS.Walk(ctx, target, func(name string, entry fs.DirEntry, err error) error {
		return errors.Join(os.Remove(v.path), fn(name, entry, err))
	})
}

func TestVanishedFileEndsTheTransfer(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	files := fsutil.NewRootFS(fsutil.NewRoot(root))
	_, err = transfer(t, vanishing{files, path})
	if gone, ok := errors.AsType[*fault.Error](err); !ok || gone.Reason != "SOURCE_NOT_FOUND" || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("err = %v, want that the file is not there", err)
	}
}
