package contextstore

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Tree is an open context. It may be used by several goroutines.
type Tree struct {
	store   *Store
	digest  Digest
	entries []Entry
	closed  bool
}

// Entries lists the files, directories and symbolic links, each after the
// directory it is in; the names of a directory are in the order of their bytes.
// The slice must not be changed.
func (t *Tree) Entries() []Entry { return t.entries }

// Open opens a regular file of the context. Reading fails in the place of the last
// bytes when the content was damaged since it was stored; the context is then gone
// from the store, so that it can be sent again.
func (t *Tree) Open(path string) (io.ReadCloser, error) {
	at, ok := slices.BinarySearchFunc(t.entries, path, func(e Entry, path string) int { return comparePaths(e.Path, path) })
	if !ok || !t.entries[at].Mode.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	e := &t.entries[at]
	f, err := t.store.root.Open(blobPath(e.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, t.damaged(e)
	}
	if err != nil {
		return nil, onDisk(err)
	}
	info, err := f.Stat()
	if err != nil || info.Size() != e.Size {
		return nil, errors.Join(t.damaged(e), onDisk(err), onDisk(f.Close()))
	}
	return &reader{tree: t, entry: e, file: f, left: e.Size, hash: sha256.New()}, nil
}

// Close ends the use of the context.
func (t *Tree) Close() error {
	if !t.closed {
		t.closed = true
		t.store.letGo(t.digest)
	}
	return nil
}

// damaged gives up a content that is not what it was, and the context.
func (t *Tree) damaged(e *Entry) error {
	t.store.unreadable(t.digest, e.Digest.String(), errDamaged)
	if err := t.store.root.Remove(blobPath(e.Digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.store.log.Error("damaged content cannot be removed", "content", e.Digest.String(), "error", err)
	}
	return fault.Wrap(errDamaged, fault.NotFound, "NOT_FOUND", "the content of "+strings.ToValidUTF8(shown(e.Path), "?")+" was lost",
		"upload the context again")
}

var errDamaged = errors.New("it is not what was stored")

// reader reads a file and holds it to its digest.
type reader struct {
	tree  *Tree
	entry *Entry
	file  *os.File
	left  int64
	hash  hash.Hash
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.file.Read(p)
	r.hash.Write(p[:n])
	r.left -= int64(n)
	switch {
	case r.left == 0 && Digest(r.hash.Sum(nil)) != r.entry.Digest, errors.Is(err, io.EOF) && r.left > 0:
		return 0, r.tree.damaged(r.entry)
	case r.left == 0:
		return n, io.EOF
	case err != nil:
		return n, onDisk(err)
	}
	return n, nil
}

// Close implements io.Closer.
func (r *reader) Close() error { return r.file.Close() }
