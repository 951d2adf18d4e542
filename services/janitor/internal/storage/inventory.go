package storage

import (
	"context"
	"encoding/hex"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
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
	tagsDir      = manifestsDir + "/tags"
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
	s, err := s.now(ctx)
	if err != nil {
		return out, err
	}
	blobs, err := s.listBlobs(ctx)
	if err != nil {
		return out, err
	}
	dirs, err := s.repositories(ctx)
	if err != nil {
		return out, err
	}
	out.Took.Walk = time.Since(out.Time)
	all := make([]looked, len(dirs))
	err = inParallel(ctx, len(dirs), func(i int) (err error) {
		all[i], err = s.repository(dirs[i], look)
		return err
	})
	if err != nil {
		return out, err
	}
	out.Took.Parse = time.Since(out.Time) - out.Took.Walk
	orphans, same, err := s.sameOrphans(all, blobs, look)
	if err == nil && !same {
		orphans, err = s.links(ctx, blobs, all, look)
	}
	if err != nil {
		return out, err
	}
	s.remember(all, blobs, orphans)
	out.Orphans, out.Numbers = orphans, sum(blobs)
	out.Repositories = make([]inventory.Repository, len(all))
	for i := range all {
		out.Repositories[i] = all[i].Repository
	}
	if !same {
		s.forgetBut(out)
	}
	out.Took.Links = time.Since(out.Time) - out.Took.Walk - out.Took.Parse
	return out, nil
}

// inParallel does something n times, some at once: it is waiting for the disk. After an
// error it begins no more.
func inParallel(ctx context.Context, n int, do func(i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(n, 2*runtime.GOMAXPROCS(0)) {
		group.Go(func() error {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := do(i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// listBlobs are the digests of all blobs whose names are sha256, by their first byte.
// Those of other algorithms are left alone.
func (s *Storage) listBlobs(ctx context.Context) (shards []directory, err error) {
	root, err := s.list(s.path("blobs", sha256))
	if err != nil {
		return nil, err
	}
	prefixes := slices.Sorted(slices.Values(root.names))
	shards = make([]directory, len(prefixes))
	err = inParallel(ctx, len(prefixes), func(i int) (err error) {
		shards[i], err = s.list(s.path("blobs", sha256, prefixes[i]))
		first, _ := hex.DecodeString(prefixes[i])
		wrong := func(h content.Sum) bool { return len(first) != 1 || h[0] != first[0] }
		if slices.ContainsFunc(shards[i].hashes, wrong) {
			shards[i].hashes = slices.DeleteFunc(slices.Clone(shards[i].hashes), wrong) // the registry does not find it there
		}
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
	var walk func(dir, name string) error
	walk = func(dir, name string) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		is, err := s.list(dir)
		if err != nil {
			return err
		}
		found := false
		for _, sub := range is.names {
			if strings.HasPrefix(sub, "_") {
				found = found || sub == layersDir || sub == manifestsDir || sub == uploadsDir
				continue
			}
			if err := walk(dir+"/"+sub, path.Join(name, sub)); err != nil {
				return err
			}
		}
		for _, h := range is.hashes { // a name that looks like a digest is one, too
			if err := walk(dir+"/"+h.Hex(), path.Join(name, h.Hex())); err != nil {
				return err
			}
		}
		if found && name != canary.Repository { // which is there for a moment
			all = append(all, name)
		}
		return nil
	}
	err = walk(s.path("repositories"), "")
	slices.Sort(all)
	return all, err
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
