package artifacts

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/quota"
)

// Remove removes the artifacts of a build. One that has none is no error.
func (s *Store) Remove(build string) error {
	if !validName.MatchString(build) || build == partDir {
		return nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	all, err := s.list(build)
	if err != nil {
		return err
	}
	for _, artifact := range all {
		if err := s.remove(artifact); err != nil {
			return err
		}
	}
	return onDisk(s.root.RemoveAll(build))
}

// kept is an artifact that is there.
type kept struct {
	path    string
	project string
	made    time.Time
	bytes   int64
}

// Sweep removes artifacts older than age, and then the oldest until all together
// have at most maxBytes. It returns the bytes that it freed. A download under way
// goes on: its file is open.
func (s *Store) Sweep(ctx context.Context, age time.Duration, maxBytes int64) (freed int64, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	all, err := s.list(".")
	if err != nil {
		return 0, err
	}
	total := int64(0)
	for _, artifact := range all {
		total += artifact.bytes
	}
	now := s.now()
	for _, artifact := range all {
		if ctx.Err() != nil || (now.Sub(artifact.made) <= age && total <= maxBytes) {
			break
		}
		if err := s.remove(artifact); err != nil {
			return freed, err
		}
		total -= artifact.bytes
		freed += artifact.bytes
	}
	if freed > 0 {
		s.log.InfoContext(ctx, "old artifacts are removed", "bytes", freed)
	}
	return freed, ctx.Err()
}

// remove removes an artifact, and its directory when it was the last. change is held.
func (s *Store) remove(artifact kept) error {
	if err := s.root.Remove(artifact.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return onDisk(err)
	}
	s.account.Keep(artifact.project, -artifact.bytes, -artifact.bytes)
	dir := path.Dir(artifact.path)
	if rest, err := fs.ReadDir(s.root.FS(), dir); err == nil && len(rest) == 1 && rest[0].Name() == projectFile {
		return onDisk(s.root.RemoveAll(dir))
	}
	return nil
}

// list returns the artifacts below a directory, oldest first. change is held, or
// nothing runs yet.
func (s *Store) list(dir string) (all []kept, err error) {
	projects := make(map[string]string) // by directory
	err = fs.WalkDir(s.root.FS(), dir, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed meanwhile
		case err != nil:
			return err
		case name == partDir:
			return fs.SkipDir
		case !entry.Type().IsRegular() || entry.Name() == projectFile:
			return nil
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		project, known := projects[path.Dir(name)]
		if !known {
			// Artifacts of an earlier version have none, and count for all only.
			raw, _ := s.root.ReadFile(path.Join(path.Dir(name), projectFile))
			project = string(raw)
			projects[path.Dir(name)] = project
		}
		all = append(all, kept{name, project, info.ModTime(), info.Size()})
		return nil
	})
	slices.SortFunc(all, func(a, b kept) int { return a.made.Compare(b.made) })
	return all, onDisk(err)
}

// recount counts what is there.
func (s *Store) recount() error {
	all, err := s.list(".")
	if err != nil {
		return err
	}
	total, projects := int64(0), make(map[string]int64)
	for _, artifact := range all {
		total += artifact.bytes
		projects[artifact.project] += artifact.bytes
	}
	s.account.Set(total, projects)
	return nil
}

// reserve takes bytes for an artifact that is written, and makes room for them when
// there is none.
func (s *Store) reserve(grant *quota.Grant, project string, bytes int64) error {
	if grant.Take(bytes) {
		return nil
	}
	if err := s.makeRoom(project, bytes); err != nil {
		return err
	}
	if grant.Take(bytes) {
		return nil
	}
	return s.account.Full(project, "artifacts", "retention.project_artifact_bytes", "retention.artifact_bytes")
}

// makeRoom removes the oldest artifacts of the project when it is full, and those of
// the project that has most when the store is.
func (s *Store) makeRoom(project string, bytes int64) error {
	s.change.Lock()
	defer s.change.Unlock()
	all, err := s.list(".")
	if err != nil {
		return err
	}
	more := bytes + s.slack
	for len(all) > 0 {
		from := project
		switch {
		case s.account.OverEach(project, more):
		case s.account.OverAll(more):
			from = s.heaviest(all, project, more)
		default:
			return nil
		}
		oldest := slices.IndexFunc(all, func(k kept) bool { return k.project == from })
		if oldest < 0 {
			return nil // what is being written is all that the project has
		}
		if err := s.remove(all[oldest]); err != nil {
			return err
		}
		all = slices.Delete(all, oldest, oldest+1)
	}
	return nil
}

// heaviest returns the project that uses most bytes: one with artifacts, or the one that
// wants more.
func (s *Store) heaviest(all []kept, wants string, more int64) string {
	most := slices.MaxFunc(all, func(a, b kept) int {
		return cmp.Compare(s.account.Of(a.project), s.account.Of(b.project))
	})
	if s.account.Of(wants)+more > s.account.Of(most.project) {
		return wants
	}
	return most.project
}
