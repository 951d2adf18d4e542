package client

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"
)

// ErrChanged is the error of an upload whose files were written to meanwhile:
// what the builder would have is no state that the directory ever was in.
var ErrChanged = errors.New("changed while it was read; upload again when nothing writes to it")

// tree is a directory of which a context is made.
type tree struct {
	root   *os.Root
	ignore *ignoring
}

func openTree(dir, dockerfile string) (*tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the context: %w", err)
	}
	ignore, err := readIgnore(root, dockerfile)
	if err != nil {
		_ = root.Close() // the first error counts
		return nil, err
	}
	return &tree{root: root, ignore: ignore}, nil
}

// Close gives the directory back.
func (t *tree) Close() error { return t.root.Close() }

// writeTar writes the context: directories before what is in them, names in
// order, everything owned by root, as BuildKit takes a context.
func (t *tree) writeTar(w io.Writer) error {
	out := &treeWriter{tree: t, tar: tar.NewWriter(w), dirs: map[string]bool{}, buf: make([]byte, 256<<10)}
	walk := t.ignore.walk()
	err := fs.WalkDir(t.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("reading the context: %w (leave it out by .dockerignore if the build does not need it)", err)
		}
		if name == "." {
			return nil
		}
		ignored, skip, err := walk.ignored(name, entry.IsDir())
		if err != nil {
			return err
		}
		if skip {
			return fs.SkipDir
		}
		if ignored {
			return nil
		}
		return out.add(name)
	})
	if err != nil {
		return err
	}
	return out.tar.Close()
}

type treeWriter struct {
	*tree
	tar  *tar.Writer
	dirs map[string]bool // that were written
	buf  []byte
}

// add writes one entry, after the directories that it is in: those may be
// ignored themselves.
func (w *treeWriter) add(name string) error {
	if dir := path.Dir(name); dir != "." && !w.dirs[dir] {
		if err := w.add(dir); err != nil {
			return err
		}
	}
	info, err := w.root.Lstat(name)
	if err != nil {
		return changedIfGone(name, err)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return w.addFile(name, info)
	case mode.IsDir():
		w.dirs[name] = true
		return w.tar.WriteHeader(header(name+"/", tar.TypeDir, info))
	case mode&fs.ModeSymlink != 0:
		target, err := w.root.Readlink(name)
		if err != nil {
			return changedIfGone(name, err)
		}
		h := header(name, tar.TypeSymlink, info)
		h.Linkname = target
		return w.tar.WriteHeader(h)
	case mode&fs.ModeSocket != 0:
		return nil // it is of a process, not of the context
	default:
		return fmt.Errorf("%s is neither a file, a directory nor a link: leave it out by .dockerignore", name)
	}
}

// addFile writes a file as it was when it was opened, or fails.
func (w *treeWriter) addFile(name string, listed fs.FileInfo) error {
	// Non-blocking, should a named pipe have taken its place.
	f, err := w.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return changedIfGone(name, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || !os.SameFile(listed, info) {
		return fmt.Errorf("%s %w", name, ErrChanged)
	}
	h := header(name, tar.TypeReg, info)
	h.Size = info.Size()
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	// Hidden from io.CopyBuffer, which would else do without the buffer.
	n, err := io.CopyBuffer(struct{ io.Writer }{w.tar}, struct{ io.Reader }{io.LimitReader(f, info.Size())}, w.buf)
	if err != nil {
		return err
	}
	after, err := f.Stat()
	if err != nil {
		return err
	}
	if n != info.Size() || after.Size() != info.Size() || !after.ModTime().Equal(info.ModTime()) {
		return fmt.Errorf("%s %w", name, ErrChanged)
	}
	return nil
}

func header(name string, kind byte, info fs.FileInfo) *tar.Header {
	mode := int64(info.Mode().Perm())
	for bit, value := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if info.Mode()&bit != 0 {
			mode |= value
		}
	}
	return &tar.Header{Name: name, Typeflag: kind, Mode: mode, ModTime: info.ModTime().Truncate(time.Second)}
}

func changedIfGone(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s %w", name, ErrChanged)
	}
	return fmt.Errorf("reading the context: %w (leave it out by .dockerignore if the build does not need it)", err)
}
