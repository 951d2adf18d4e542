package contextstore

import (
	"errors"
	"io/fs"
	"os"
	"strings"
)

// A context belongs to the projects that brought it: those that uploaded or fetched
// an archive of it. Other projects share its blobs and never learn of it: to them it
// is not there. ownersDir has an empty file "<context>.<project>" for each.

// ownerName returns the name of the file that says that a context is of a project.
func ownerName(d Digest, project string) string { return ownersDir + "/" + d.hex() + "." + project }

// own notes on disk that a context is of a project. change is held.
func (s *Store) own(d Digest, project string) error {
	f, err := s.root.OpenFile(ownerName(d, project), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return onDisk(err)
	}
	return onDisk(f.Close())
}

// disown notes on disk that a context is no longer of some projects.
func (s *Store) disown(d Digest, owners []string) error {
	for _, project := range owners {
		if err := s.root.Remove(ownerName(d, project)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return onDisk(err)
		}
	}
	return nil
}

// loadOwners reads the owners of the contexts, and removes those of contexts that
// are gone. A context without owners, as an earlier version stored them, is of nobody
// and goes by its age.
func (s *Store) loadOwners() error {
	names, err := s.list(ownersDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		hex, project, _ := strings.Cut(name, ".")
		d, ok := digestOfHex(hex)
		if c := s.contexts[d]; ok && c != nil && project != "" {
			c.owners[project] = true
			continue
		}
		if err := s.root.Remove(ownersDir + "/" + name); err != nil {
			return onDisk(err)
		}
	}
	return nil
}
