package storage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// Forget takes the files of a blob away that one repository alone has: that of the canary.
func (s *Storage) Forget(repository string, digest content.Digest) error {
	link := s.link(repository, layersDir, digest)
	if there, err := s.exists(link); err != nil || !there {
		return errors.Join(err, fmt.Errorf("%s: %w", link, errGone))
	}
	return errors.Join(s.files.remove(context.Background(), link), s.files.remove(context.Background(), filepath.Dir(s.data(digest))))
}

// ForgetManifest takes the files of a manifest away that one repository alone has, as Forget does.
func (s *Storage) ForgetManifest(repository string, digest content.Digest) error {
	link := s.link(repository, revisionsDir, digest)
	return errors.Join(s.files.remove(context.Background(), filepath.Dir(link)), s.files.remove(context.Background(), filepath.Dir(s.data(digest))))
}

// ForgetRepository takes a repository away, with all that is in it: that of the canary.
func (s *Storage) ForgetRepository(name string) error {
	err := s.files.remove(context.Background(), s.repositoryDir(name))
	s.files.tidy(filepath.Dir(s.repositoryDir(name)), s.path("repositories"))
	return err
}
