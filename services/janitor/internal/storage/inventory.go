package storage

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/services/janitor/internal/canary"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// The parts of a repository's directory (distribution v3,
// registry/storage/paths.go). The names of directories are the digests.
const (
	layersDir    = "_layers"
	manifestsDir = "_manifests"
	revisionsDir = manifestsDir + "/revisions"
	uploadsDir   = "_uploads"
	sha256       = "sha256"
)

// Inventory reads the storage into an inventory of what it holds. Manifests that were
// read before are remembered: their bytes cannot change.
//
// Blobs are listed before what names them is read, so that a blob which is pushed
// meanwhile is no orphan.
func (s *Storage) Inventory(ctx context.Context, look inventory.Look) (inventory.Registry, error) {
	out := inventory.Registry{Time: time.Now()}
	blobs, err := s.listBlobs(ctx)
	if err != nil {
		return out, err
	}
	dirs, err := s.repositories(ctx)
	if err != nil {
		return out, err
	}
	out.Took.Walk = time.Since(out.Time)
	out.Repositories = make([]inventory.Repository, len(dirs))
	err = inParallel(ctx, len(dirs), func(i int) (err error) {
		out.Repositories[i], err = s.repository(dirs[i], look)
		return err
	})
	if err != nil {
		return out, err
	}
	s.forgetBut(out)
	out.Took.Parse = time.Since(out.Time) - out.Took.Walk
	err = s.links(ctx, blobs, &out, look)
	out.Took.Links = time.Since(out.Time) - out.Took.Walk - out.Took.Parse
	return out, err
}

// inParallel does something n times, some at once: it is waiting for the disk. After an
// error it begins no more.
func inParallel(ctx context.Context, n int, do func(i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2 * runtime.GOMAXPROCS(0))
	for i := range n {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return do(i)
		})
	}
	return group.Wait()
}

// listBlobs are the digests of all blobs whose names are sha256, by their first byte.
// Those of other algorithms are left alone.
func (s *Storage) listBlobs(ctx context.Context) (shards [][]string, err error) {
	prefixes, err := names(s.path("blobs", sha256))
	if err != nil {
		return nil, err
	}
	slices.Sort(prefixes)
	shards = make([][]string, len(prefixes))
	err = inParallel(ctx, len(prefixes), func(i int) (err error) {
		shards[i], err = names(s.path("blobs", sha256, prefixes[i]))
		shards[i] = slices.DeleteFunc(shards[i], func(name string) bool { return !isHex(name) })
		return err
	})
	return shards, err
}

func isHex(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

// repositories are the names of all repositories, also of those that hold layers or
// uploads only, which no catalog has.
func (s *Storage) repositories(ctx context.Context) (all []string, err error) {
	root := s.path("repositories")
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil // gone meanwhile, or nothing was pushed yet
		case err != nil:
			return err
		case !entry.IsDir() || path == root:
			return nil
		case strings.HasPrefix(entry.Name(), "_"):
			name, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			if name != canary.Repository { // which is there for a moment
				all = append(all, filepath.ToSlash(name))
			}
			return fs.SkipDir
		}
		return nil
	})
	slices.Sort(all)
	return slices.Compact(all), err
}

// forgetBut forgets manifests that are in no repository any more.
func (s *Storage) forgetBut(r inventory.Registry) {
	there := map[content.Digest]bool{}
	for _, repository := range r.Repositories {
		for _, m := range repository.Manifests {
			there[m.Digest] = true
		}
	}
	s.known.keep(there)
}
