package storage

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// links compares what is stored with what names it: blobs that nothing names, and names of
// blobs that are not there.
func (s *Storage) links(ctx context.Context, shards []directory, all []looked, look inventory.Look) (found stored, _ error) {
	is, err := newBlobs(ctx, shards)
	if err != nil {
		return found, err
	}
	err = inParallel(ctx, len(all), func(i int) error {
		all[i].Dangling = nil
		is.nameAll(&all[i].Repository)
		return nil
	})
	if err != nil {
		return found, err
	}
	orphans, err := s.orphans(is, look)
	if err != nil {
		return found, err
	}
	if lost, err := s.lost(is, all); err != nil {
		return found, err
	} else if lost { // what they name is named no more
		for i := range all {
			if all[i], err = s.readRepository(ctx, all[i].Name, look); err != nil {
				return found, err
			}
		}
		return s.links(ctx, shards, all, look)
	}
	if err := s.linksTo(ctx, is, orphans, all); err != nil {
		return found, err
	}
	for _, o := range orphans {
		slices.Sort(o.Repositories)
		found.orphans = append(found.orphans, *o)
	}
	found.bytes = is.bytes
	return found, nil
}

// nameAll names all that a repository names, and numbers it.
func (b *blobs) nameAll(r *inventory.Repository) {
	r.Number(func(blob content.Blob) int32 {
		sum, ok := blob.Sum()
		if !ok {
			return inventory.Missing // another algorithm's are left alone
		}
		n := b.name(sum)
		if n != inventory.Missing {
			atomic.StoreInt64(&b.bytes[n], blob.Bytes) // as other repositories say, too
		}
		return n
	})
	name := func(d content.Digest) {
		if sum, ok := d.Sum(); ok {
			b.name(sum)
		}
	}
	for k := range r.Manifests {
		for _, d := range r.Manifests[k].Children { // an index may list what is here, and of no revision
			name(d)
		}
		for _, d := range r.Manifests[k].Foreign {
			name(d)
		}
	}
	for _, d := range r.Doubts {
		name(d.Digest) // its own bytes go with its link
	}
}

// lost forgets manifests that are remembered and whose bytes are gone. It reports whether
// there were any.
func (s *Storage) lost(stored *blobs, all []looked) (lost bool, _ error) {
	for i := range all {
		for k := range all[i].Manifests {
			h, ok := all[i].Manifests[k].Digest.Sum()
			if !ok || stored.has(h) {
				continue
			}
			there, err := s.exists(s.data(all[i].Manifests[k].Digest)) // pushed meanwhile?
			if err != nil {
				return false, err
			}
			if !there {
				s.known.drop(h)
				lost = true
			}
		}
	}
	return lost, nil
}

// reaches are all that a manifest names.
func reaches(m *content.Manifest) func(func(content.Digest) bool) {
	return func(yield func(content.Digest) bool) {
		for _, b := range m.Blobs {
			if !yield(b.Digest()) {
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
func (s *Storage) orphans(stored *blobs, look inventory.Look) (map[content.Sum]*inventory.Orphan, error) {
	removed := s.removed(look.Removed)
	all := map[content.Sum]*inventory.Orphan{}
	return all, stored.unnamed(func(h content.Sum) error {
		o, err := s.orphan(h.Digest())
		if o != nil {
			o.Removed = removed[o.Digest]
			all[h] = o
		}
		return err
	})
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
		h, ok := r.Digest.Sum()
		if !ok {
			continue
		}
		if m, doubt, err := s.manifest(h); err == nil && doubt == nil {
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
		is, err := s.stat(at)
		if err != nil {
			return nil, err
		}
		if !is.there && at != path {
			return nil, nil
		}
		for _, t := range []time.Time{is.modified, is.changed} {
			if t.After(o.Changed) {
				o.Changed = t
			}
		}
		if at == path {
			o.Bytes = is.size // 0: a directory without data
		}
	}
	return o, nil
}

// linksTo finds which repositories have links to orphans, and when those were written; and
// links to what is not stored.
func (s *Storage) linksTo(ctx context.Context, stored *blobs, orphans map[content.Sum]*inventory.Orphan, all []looked) error {
	var mu sync.Mutex // of the orphans
	return inParallel(ctx, len(all), func(i int) error {
		repository := &all[i].Repository
		for _, h := range all[i].links {
			if stored.has(h) && orphans[h] == nil {
				continue
			}
			digest := h.Digest()
			linked, err := s.written(s.link(repository.Name, layersDir, digest))
			if err != nil {
				return err
			}
			if linked.IsZero() {
				continue
			}
			o := orphans[h]
			if o == nil {
				there, err := s.exists(s.data(digest)) // pushed meanwhile?
				if err != nil {
					return err
				}
				if !there {
					repository.Dangling = append(repository.Dangling, inventory.Link{Digest: digest, Linked: linked})
				}
				continue
			}
			mu.Lock()
			o.Repositories = append(o.Repositories, repository.Name)
			if linked.After(o.Changed) {
				o.Changed = linked
			}
			mu.Unlock()
		}
		return nil
	})
}

// Lacks are what manifests name and is not there, in the order of the inventory.
func (s *Storage) Lacks(ctx context.Context, r inventory.Registry) ([]inventory.Lack, error) {
	s, err := s.now(ctx)
	if err != nil {
		return nil, err
	}
	found := make([][]inventory.Lack, len(r.Repositories))
	err = inParallel(ctx, len(r.Repositories), func(i int) (err error) {
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
	hexes, err := s.names(s.linksDir(r.Name, layersDir))
	if err != nil {
		return nil, err
	}
	for _, hex := range hexes {
		linked[content.Digest(sha256+":"+hex)] = true
	}
	for _, m := range r.Manifests {
		for _, b := range m.Blobs {
			d := b.Digest()
			there, err := s.pullable(r.Name, d, linked[d])
			if err != nil {
				return nil, err
			}
			if !there {
				lacks = append(lacks, inventory.Lack{Repository: r.Name, Manifest: m.Digest, Digest: d})
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
		if there, err := s.exists(path); err != nil || !there {
			return false, err
		}
	}
	return true, nil
}
