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
	"github.com/kilnbuild/kiln/services/builder/internal/quota"
)

// Store keeps artifacts in a directory. One process at a time may use it.
type Store struct {
	root    *os.Root
	log     *slog.Logger
	now     func() time.Time
	account *quota.Account // of bytes, by project
	slack   int64          // bytes that are freed beyond those that are needed

	change sync.Mutex // held to put artifacts into their directories, and to take them out
}

// partDir is where artifacts are while they are written.
const partDir = "part"

// validName is what the contract lets an artifact be called, and what the ids of
// builds are made of.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$`)

// projectFile is in the directory of each build and names its project. No artifact is
// called so.
const projectFile = ".project"

// Open opens the store in dir, which it makes if need be, removes what an earlier
// process left half-made, and counts what is there.
func Open(dir string, limits quota.Limits, log *slog.Logger, now func() time.Time) (_ *Store, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("artifacts: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("artifacts: %w", err)
	}
	s := &Store{root: root, log: log, now: now, account: quota.New(limits), slack: limits.Slack()}
	if err := errors.Join(root.RemoveAll(partDir), root.Mkdir(partDir, 0o700), s.recount()); err != nil {
		return nil, errors.Join(fmt.Errorf("artifacts: %w", err), root.Close())
	}
	return s, nil
}

// Close gives back what the store holds.
func (s *Store) Close() error { return s.root.Close() }

// Writer takes the bytes of an artifact, and one of Commit and Abort.
type Writer struct {
	store   *Store
	file    *os.File
	grant   *quota.Grant
	part    string
	project string
	build   string
	name    string
	size    int64
	done    bool
}

// Create begins an artifact of a build of a project. Nobody sees it before Commit.
func (s *Store) Create(project, build, name string) (*Writer, error) {
	if !validName.MatchString(build) || !validName.MatchString(name) || build == partDir {
		return nil, fault.Invalid("artifact", name, "is not the name of an artifact", `use letters, digits, ".", "_" and "-"`)
	}
	part := path.Join(partDir, rand.Text())
	file, err := s.root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, onDisk(err)
	}
	return &Writer{
		store: s, file: file, grant: s.account.Grant(project), part: part, project: project, build: build, name: name,
	}, nil
}

// Write implements io.Writer. Bytes are reserved before they are written: a full disk
// is a RESOURCE_EXHAUSTED fault, and so is a project or a store that is full though
// its oldest artifacts were removed.
func (w *Writer) Write(p []byte) (int, error) {
	if err := w.store.reserve(w.grant, w.project, int64(len(p))); err != nil {
		return 0, err
	}
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
		err = w.store.publish(w)
	}
	if err != nil {
		return 0, errors.Join(onDisk(err), w.Abort())
	}
	w.done = true
	w.grant.Close()
	return w.size, nil
}

// publish gives an artifact its name, and counts it. A sweep, which removes
// directories that are empty, must not come between.
func (s *Store) publish(w *Writer) error {
	s.change.Lock()
	defer s.change.Unlock()
	if err := s.root.MkdirAll(w.build, 0o700); err != nil {
		return err
	}
	if err := s.root.WriteFile(path.Join(w.build, projectFile), []byte(w.project), 0o600); err != nil {
		return err
	}
	final := path.Join(w.build, w.name)
	before := int64(0)
	if info, err := s.root.Lstat(final); err == nil {
		before = info.Size()
	}
	if err := s.root.Rename(w.part, final); err != nil {
		return err
	}
	if err := s.sync(w.build); err != nil {
		return errors.Join(err, s.root.Rename(final, w.part)) // Abort takes it from there
	}
	s.account.Keep(w.project, w.size-before, w.size-before)
	return nil
}

// Abort removes what was written. After Commit it does nothing.
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	w.done = true
	defer w.grant.Close()
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
