// Package artifacts keeps what builds give besides images in a registry: archives
// and trees of files, by build and name. An artifact is complete or absent.
package artifacts

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"regexp"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/disk"
)

// Store keeps artifacts in a directory. One process at a time may use it.
type Store struct {
	root *os.Root
	log  *slog.Logger
	now  func() time.Time

	change sync.Mutex // held to put artifacts into their directories, and to take them out
}

// partDir is where artifacts are while they are written.
const partDir = "part"

// validName is what the contract lets an artifact be called, and what the ids of
// builds are made of.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$`)

// Open opens the store in dir, which it makes if need be, and removes what an
// earlier process left half-made.
func Open(dir string, log *slog.Logger, now func() time.Time) (_ *Store, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("artifacts: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("artifacts: %w", err)
	}
	s := &Store{root: root, log: log, now: now}
	if err := errors.Join(root.RemoveAll(partDir), root.Mkdir(partDir, 0o700)); err != nil {
		return nil, errors.Join(fmt.Errorf("artifacts: %w", err), root.Close())
	}
	return s, nil
}

// Close gives back what the store holds.
func (s *Store) Close() error { return s.root.Close() }

// Writer takes the bytes of an artifact, and one of Commit and Abort.
type Writer struct {
	store *Store
	file  *os.File
	part  string
	build string
	name  string
	size  int64
	done  bool
}

// Create begins an artifact of a build. Nobody sees it before Commit.
func (s *Store) Create(build, name string) (*Writer, error) {
	if !validName.MatchString(build) || !validName.MatchString(name) || build == partDir {
		return nil, fault.Invalid("artifact", name, "is not the name of an artifact", `use letters, digits, ".", "_" and "-"`)
	}
	part := path.Join(partDir, rand.Text())
	file, err := s.root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, onDisk(err)
	}
	return &Writer{store: s, file: file, part: part, build: build, name: name}, nil
}

// Write implements io.Writer. A full disk is a RESOURCE_EXHAUSTED fault.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	w.size += int64(n)
	return n, onDisk(err)
}

// Commit puts the artifact in its place, in that of one of the same name if there
// is one, and returns its bytes. After an error nothing is there.
func (w *Writer) Commit() (int64, error) {
	if w.done {
		return 0, fmt.Errorf("artifact %q has ended already", w.name)
	}
	err := w.file.Sync()
	if err == nil {
		err = w.file.Close()
	}
	if err == nil {
		err = w.store.publish(w.part, w.build, w.name)
	}
	if err != nil {
		return 0, errors.Join(onDisk(err), w.Abort())
	}
	w.done = true
	return w.size, nil
}

// publish gives an artifact its name. A sweep, which removes directories that are
// empty, must not come between.
func (s *Store) publish(part, build, name string) error {
	s.change.Lock()
	defer s.change.Unlock()
	if err := s.root.MkdirAll(build, 0o700); err != nil {
		return err
	}
	final := path.Join(build, name)
	if err := s.root.Rename(part, final); err != nil {
		return err
	}
	if err := s.sync(build); err != nil {
		return errors.Join(err, s.root.Rename(final, part)) // Abort takes it from there
	}
	return nil
}

// Abort removes what was written. After Commit it does nothing.
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	w.done = true
	err := w.file.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	return errors.Join(err, w.store.root.Remove(w.part))
}

// sync writes the names of a directory, and its own, to the disk.
func (s *Store) sync(dir string) error {
	for _, name := range []string{dir, "."} {
		d, err := s.root.Open(name)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Open opens an artifact and tells its bytes. NOT_FOUND when it is not there.
func (s *Store) Open(build, name string) (*os.File, int64, error) {
	missing := fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("build %q has no artifact %q", build, name),
		"see the outcome of the build for its artifacts; they go as retention of the builder says")
	if !validName.MatchString(build) || !validName.MatchString(name) || build == partDir {
		return nil, 0, missing
	}
	file, err := s.root.Open(path.Join(build, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, missing
	}
	if err != nil {
		return nil, 0, onDisk(err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, 0, errors.Join(onDisk(err), file.Close())
	}
	return file, info.Size(), nil
}

// onDisk explains an error of the store's own files.
func onDisk(err error) error { return disk.Explain("artifacts", err) }
