package storage

import (
	"context"
	"path"
	"time"

	"github.com/distribution/distribution/v3/registry/storage/driver"
)

// snapshot is what objects there were below a directory: to list all takes one call for a
// thousand, and to look at each one for each.
type snapshot struct {
	*objects
	dirs  map[string]*directory
	files map[string]stat
}

// walkTimeout bounds the listing of all objects.
const walkTimeout = time.Hour

func (o *objects) frozen(ctx context.Context, dir string) (reader, error) {
	ctx, cancel := context.WithTimeout(ctx, walkTimeout)
	defer cancel()
	s := &snapshot{objects: o, dirs: map[string]*directory{}, files: map[string]stat{}}
	// The keys are in order, so blobs come before what names them.
	err := o.driver.Walk(ctx, dir, func(info driver.FileInfo) error {
		if !info.IsDir() {
			s.files[info.Path()] = statOf(info)
			s.enter(info.Path())
		}
		return ctx.Err()
	})
	return s, ignoreMissing(err)
}

// enter adds a path to the directories above it.
func (s *snapshot) enter(p string) {
	for p != "/" {
		dir := path.Dir(p)
		d, known := s.dirs[dir]
		if !known {
			d = &directory{}
			s.dirs[dir] = d
		}
		d.add(path.Base(p))
		if known {
			return
		}
		p = dir
	}
}

func (s *snapshot) list(dir string) (directory, error) {
	if d := s.dirs[dir]; d != nil {
		return *d, nil
	}
	return directory{}, nil
}

func (s *snapshot) names(dir string) ([]string, error) {
	is, err := s.list(dir)
	return is.all(), err
}

func (s *snapshot) within(dir string, do func(place) error) error { return do(below{s, dir}) }

// stat looks again at what was not there: it may have come meanwhile.
func (s *snapshot) stat(path string) (stat, error) {
	if is, there := s.files[path]; there {
		return is, nil
	}
	if s.dirs[path] != nil {
		return stat{there: true}, nil
	}
	return s.objects.stat(path)
}
