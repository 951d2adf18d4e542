// Package hostdir opens directories of this host that a request may name: those
// at or below an allowed root, however the path is written.
package hostdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Roots are the directories that may be opened, with all below them.
type Roots []string

// Open opens the directory at path. What it returns cannot be left by ".." or a
// symbolic link, also when the directory changes while it is read (os.Root).
// path may be spelled with links of its own, as long as it ends below a root.
func (r Roots) Open(path string) (*os.Root, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		// What is missing outside the roots is none of the caller's business.
		if !r.names(path) {
			return nil, r.denied(path)
		}
		return nil, r.unreadable(path, err)
	}
	for _, root := range r {
		base, err := filepath.EvalSymlinks(root)
		if err != nil || base == "/" { // See Check: a link may have been turned since.
			continue
		}
		rel, err := filepath.Rel(base, real)
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		return r.openBelow(base, rel, path)
	}
	return nil, r.denied(path)
}

// Create opens the directory at path, and makes it and those above it, below their
// root, when they are missing. path must name a place below a root as it is
// written.
func (r Roots) Create(path string) (*os.Root, error) {
	for _, root := range r {
		rel, err := filepath.Rel(root, filepath.Clean(path))
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		if real(root) == "/" {
			continue
		}
		base, err := os.OpenRoot(root)
		if err != nil {
			return nil, r.unreadable(path, err)
		}
		err = base.MkdirAll(rel, 0o755)
		if err := errors.Join(err, base.Close()); err != nil && !errors.Is(err, fs.ErrExist) {
			if strings.Contains(err.Error(), "escapes") {
				return nil, r.denied(path)
			}
			return nil, r.unreadable(path, err)
		}
		return r.openBelow(root, rel, path)
	}
	return nil, r.denied(path)
}

// openBelow opens by os.Root, so that a link put in place since EvalSymlinks
// looked does not lead out.
func (r Roots) openBelow(base, rel, path string) (*os.Root, error) {
	root, err := os.OpenRoot(base)
	if err != nil {
		return nil, r.unreadable(path, err)
	}
	defer func() { _ = root.Close() }() // opened for reading
	// Looked at first: to open a FIFO is to wait for its other end.
	if info, err := root.Stat(rel); err == nil && !info.IsDir() {
		return nil, fault.Invalid("spec.context.directory.path", path, "is "+kind(info.Mode())+", not a directory", "name a directory")
	}
	dir, err := root.OpenRoot(rel)
	switch {
	case err == nil:
		return dir, nil
	case strings.Contains(err.Error(), "escapes"):
		return nil, r.denied(path)
	default:
		return nil, r.unreadable(path, err)
	}
}

// names reports whether the path as it is written lies below a root.
func (r Roots) names(path string) bool {
	for _, root := range r {
		if rel, err := filepath.Rel(root, filepath.Clean(path)); err == nil && filepath.IsLocal(rel) {
			return true
		}
	}
	return false
}

func (r Roots) denied(path string) error {
	allowed := "none is set"
	if len(r) > 0 {
		allowed = strings.Join(r, ", ")
	}
	err := fault.New(fault.PermissionDenied, "DIRECTORY_NOT_ALLOWED",
		fmt.Sprintf("directory %q is outside the allowed roots of the builder's host (%s)", path, allowed),
		"name a directory below an allowed root, or add its root to allowed_roots of the builder")
	err.Field, err.Value = "spec.context.directory.path", path
	return err
}

func (r Roots) unreadable(path string, err error) error {
	message := "cannot be opened: " + err.Error()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		message = "does not exist on the builder's host"
	case errors.Is(err, fs.ErrPermission):
		message = "cannot be read by the builder"
	}
	return fault.Invalid("spec.context.directory.path", path, message,
		"name a directory of the builder's host, not of the caller's, that the builder's user can read")
}
