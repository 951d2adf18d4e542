package artifacts

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"time"
)

// Remove removes the artifacts of a build. One that has none is no error.
func (s *Store) Remove(build string) error {
	if !validName.MatchString(build) || build == partDir {
		return nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	return onDisk(s.root.RemoveAll(build))
}

// kept is an artifact that is there.
type kept struct {
	path  string
	made  time.Time
	bytes int64
}

// Sweep removes artifacts older than age, and then the oldest until all together
// have at most maxBytes. It returns the bytes that it freed. A download under way
// goes on: its file is open.
func (s *Store) Sweep(ctx context.Context, age time.Duration, maxBytes int64) (freed int64, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	all, total, err := s.list()
	if err != nil {
		return 0, err
	}
	slices.SortFunc(all, func(a, b kept) int { return a.made.Compare(b.made) })
	now := s.now()
	for _, artifact := range all {
		if ctx.Err() != nil || (now.Sub(artifact.made) <= age && total <= maxBytes) {
			break
		}
		if err := s.root.Remove(artifact.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, onDisk(err)
		}
		total -= artifact.bytes
		freed += artifact.bytes
		// Fails while the build has others.
		_ = s.root.Remove(path.Dir(artifact.path))
	}
	if freed > 0 {
		s.log.InfoContext(ctx, "old artifacts are removed", "bytes", freed)
	}
	return freed, ctx.Err()
}

func (s *Store) list() (all []kept, total int64, err error) {
	err = fs.WalkDir(s.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed meanwhile
		case err != nil:
			return err
		case name == partDir:
			return fs.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		all = append(all, kept{name, info.ModTime(), info.Size()})
		total += info.Size()
		return nil
	})
	return all, total, onDisk(err)
}
