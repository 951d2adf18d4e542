package storage

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// Forget takes the files of a blob away that one repository alone has: that of the canary.
func (s *Storage) Forget(repository string, digest content.Digest) error {
	link := s.link(repository, layersDir, digest)
	if _, err := os.Lstat(link); err != nil {
		return err
	}
	return errors.Join(os.Remove(link), os.RemoveAll(filepath.Dir(s.data(digest))))
}

// ForgetRepository takes a repository away, with all that is in it: that of the canary.
func (s *Storage) ForgetRepository(name string) error {
	err := os.RemoveAll(s.repositoryDir(name))
	tidy(filepath.Dir(s.repositoryDir(name)), s.path("repositories"))
	return err
}
