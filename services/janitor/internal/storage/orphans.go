package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// links compares what is stored with what names it: blobs that nothing names, and names of
// blobs that are not there.
func (s *Storage) links(ctx context.Context, shards [][]string, r *inventory.Registry, look inventory.Look) error {
	stored := make(map[string]struct{}, sum(shards))
	for _, shard := range shards {
		for _, hex := range shard {
			stored[hex] = struct{}{}
		}
	}
	named := map[content.Digest]bool{}
	for i := range r.Repositories {
		repository := &r.Repositories[i]
		for _, m := range repository.Manifests {
			named[m.Digest] = true
			for d := range reaches(m.Manifest) { // an index may list what is here, and of no revision
				named[d] = true
			}
		}
		for _, d := range repository.Doubts {
			named[d.Digest] = true // its own bytes go with its link
		}
	}
	orphans, err := s.orphans(shards, named, look)
	if err != nil {
		return err
	}
	if err := s.linksTo(ctx, stored, orphans, r); err != nil {
		return err
	}
	for _, o := range orphans {
		slices.Sort(o.Repositories)
		r.Orphans = append(r.Orphans, *o)
	}
	return nil
}

func sum(shards [][]string) (n int) {
	for _, shard := range shards {
		n += len(shard)
	}
	return n
}

// reaches are all that a manifest names.
func reaches(m content.Manifest) func(func(content.Digest) bool) {
	return func(yield func(content.Digest) bool) {
		for _, b := range m.Blobs {
			if !yield(b.Digest) {
				return
			}
		}
		for _, other := range slices.Concat(m.Children, m.Foreign) {
			if !yield(other) {
				return
			}
		}
	}
}

// orphans are the blobs that no manifest names, without their links.
func (s *Storage) orphans(shards [][]string, named map[content.Digest]bool, look inventory.Look) (map[content.Digest]*inventory.Orphan, error) {
	removed := s.removed(look.Removed)
	all := map[content.Digest]*inventory.Orphan{}
	for _, shard := range shards {
		for _, hex := range shard {
			digest := content.Digest(sha256 + ":" + hex)
			if named[digest] {
				continue
			}
			o, err := s.orphan(digest)
			if err != nil {
				return nil, err
			}
			if o != nil {
				o.Removed = removed[digest]
				all[digest] = o
			}
		}
	}
	return all, nil
}

// removed says for each blob that manifests named which runs have removed, when the last
// of these was.
func (s *Storage) removed(manifests []inventory.Removed) map[content.Digest]time.Time {
	out := map[content.Digest]time.Time{}
	note := func(d content.Digest, at time.Time) {
		if at.After(out[d]) {
			out[d] = at
		}
	}
	for _, r := range manifests {
		note(r.Digest, r.At)
		if m, doubt, err := s.manifest(r.Digest); err == nil && doubt == nil {
			for d := range reaches(m) {
				note(d, r.At)
			}
		}
	}
	return out
}

// orphan looks at the files of a blob; nil when it is gone.
func (s *Storage) orphan(digest content.Digest) (*inventory.Orphan, error) {
	path := s.data(digest)
	o := &inventory.Orphan{Digest: digest}
	for _, at := range []string{filepath.Dir(path), path} {
		info, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) && at == path {
			continue // a directory without data
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		for _, t := range []time.Time{info.ModTime(), changeTime(info)} {
			if t.After(o.Changed) {
				o.Changed = t
			}
		}
		if at == path {
			o.Bytes = info.Size()
		}
	}
	return o, nil
}

// linksTo finds which repositories have links to orphans, and when those were written; and
// links to what is not stored.
func (s *Storage) linksTo(ctx context.Context, stored map[string]struct{}, orphans map[content.Digest]*inventory.Orphan, r *inventory.Registry) error {
	var mu sync.Mutex // of the orphans
	return inParallel(ctx, len(r.Repositories), func(i int) error {
		repository := &r.Repositories[i]
		hexes, err := names(s.linksDir(repository.Name, layersDir))
		if err != nil {
			return err
		}
		for _, hex := range hexes {
			digest := content.Digest(sha256 + ":" + hex)
			_, there := stored[hex]
			o := orphans[digest]
			if o == nil && there || !isHex(hex) {
				continue
			}
			info, err := os.Lstat(s.link(repository.Name, layersDir, digest))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if !there {
				if _, err := os.Lstat(s.data(digest)); errors.Is(err, fs.ErrNotExist) { // else it was pushed meanwhile
					repository.Dangling = append(repository.Dangling, inventory.Link{Digest: digest, Linked: info.ModTime()})
				}
				continue
			}
			mu.Lock()
			o.Repositories = append(o.Repositories, repository.Name)
			if info.ModTime().After(o.Changed) {
				o.Changed = info.ModTime()
			}
			mu.Unlock()
		}
		return nil
	})
}

// Lacks are what manifests name and is not there, in the order of the inventory.
func (s *Storage) Lacks(ctx context.Context, r inventory.Registry) ([]inventory.Lack, error) {
	found := make([][]inventory.Lack, len(r.Repositories))
	err := inParallel(ctx, len(r.Repositories), func(i int) (err error) {
		found[i], err = s.lacksOf(&r.Repositories[i])
		return err
	})
	return slices.Concat(found...), err
}

func (s *Storage) lacksOf(r *inventory.Repository) (lacks []inventory.Lack, _ error) {
	children := map[content.Digest]bool{}
	for _, m := range r.Manifests {
		children[m.Digest] = true
	}
	for _, d := range r.Doubts {
		children[d.Digest] = true
	}
	linked := map[content.Digest]bool{}
	hexes, err := names(s.linksDir(r.Name, layersDir))
	if err != nil {
		return nil, err
	}
	for _, hex := range hexes {
		linked[content.Digest(sha256+":"+hex)] = true
	}
	for _, m := range r.Manifests {
		for _, b := range m.Blobs {
			there, err := s.pullable(r.Name, b.Digest, linked[b.Digest])
			if err != nil {
				return nil, err
			}
			if !there {
				lacks = append(lacks, inventory.Lack{Repository: r.Name, Manifest: m.Digest, Digest: b.Digest})
			}
		}
		for _, child := range m.Children {
			if !children[child] && isSHA256(child) {
				lacks = append(lacks, inventory.Lack{Repository: r.Name, Manifest: m.Digest, Digest: child, Child: true})
			}
		}
	}
	return lacks, nil
}

// pullable reports whether a blob is there and linked.
func (s *Storage) pullable(repository string, digest content.Digest, linked bool) (bool, error) {
	if !isSHA256(digest) {
		return true, nil // another algorithm's are left alone
	}
	if !linked {
		return false, nil
	}
	for _, path := range []string{s.data(digest), s.link(repository, layersDir, digest)} {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return true, nil
}
