package storage

import (
	"context"
	"encoding/hex"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

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
	dirs, err := s.tree(ctx)
	if err != nil {
		return out, err
	}
	out.Took.Walk = time.Since(out.Time)
	all := make([]looked, len(dirs))
	err = inParallel(ctx, len(dirs), func(i int) (err error) {
		all[i], err = s.repository(ctx, dirs[i].name, look)
		all[i].Aliases, all[i].Elsewhere = dirs[i].aliases, dirs[i].elsewhere
		return err
	})
	if err != nil {
		return out, err
	}
	out.Took.Parse = time.Since(out.Time) - out.Took.Walk
	found, same, err := s.sameStored(all, blobs, look)
	if err == nil && !same {
		found, err = s.links(ctx, blobs, all, look)
		found.read = out.Time
	}
	if err != nil {
		return out, err
	}
	s.remember(all, blobs, found)
	out.Orphans, out.Bytes = found.orphans, found.bytes
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
	for range min(n, 4*runtime.GOMAXPROCS(0)) {
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

// forgetBut forgets manifests that are in no repository any more, when there are many.
func (s *Storage) forgetBut(r inventory.Registry) {
	count := 0
	for _, repository := range r.Repositories {
		count += len(repository.Manifests)
	}
	if s.known.count() <= count+count/4 {
		return
	}
	there := map[content.Digest]bool{}
	for _, repository := range r.Repositories {
		for _, m := range repository.Manifests {
			there[m.Digest] = true
		}
	}
	s.known.keep(there)
}
