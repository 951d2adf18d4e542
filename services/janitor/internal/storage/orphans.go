package storage

import (
	"context"
	"iter"
	"path/filepath"
	"slices"
	"strings"
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
		all[i].Dangling, all[i].Unnamed = nil, nil
		return s.nameAll(is, &all[i].Repository)
	})
	if err != nil {
		return found, err
	}
	removed := s.removed(look.Removed)
	orphans, err := s.orphans(is, removed)
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
	if err := s.linksTo(ctx, is, orphans, all, removed); err != nil {
		return found, err
	}
	for _, o := range orphans {
		slices.Sort(o.Repositories)
		slices.Sort(o.Aliases)
		found.orphans = append(found.orphans, *o)
	}
	found.bytes = is.bytes
	return found, nil
}

// nameAll names all that a repository names, and numbers it.
func (s *Storage) nameAll(b *blobs, r *inventory.Repository) error {
	if err := s.resolveAll(r); err != nil {
		return err
	}
	r.Number(func(blob content.Blob) int32 {
		sum, ok := blob.Sum()
		if !ok {
			if sum, ok = r.Resolved[blob.Digest()].Sum(); !ok {
				return inventory.Missing
			}
		}
		n := b.name(sum)
		if n != inventory.Missing {
			atomic.StoreInt64(&b.bytes[n], blob.Bytes) // as other repositories say, too
		}
		return n
	})
	for d := range namedBeside(r) {
		if sum, ok := d.Sum(); ok {
			b.name(sum)
		}
	}
	return nil
}

// namedBeside are the digests that a repository names but for blobs of manifests, as the storage has
// them.
func namedBeside(r *inventory.Repository) iter.Seq[content.Digest] {
	return func(yield func(content.Digest) bool) {
		for k := range r.Manifests {
			m := &r.Manifests[k]
			for _, all := range [][]content.Digest{m.Children, m.Foreign} { // an index may list what is of no revision
				for _, d := range all {
					if target, other := r.Resolved[d]; other {
						d = target
					}
					if !yield(d) {
						return
					}
				}
			}
		}
		for _, d := range r.Doubts { // its own bytes go with its link
			if !yield(d.Digest) {
				return
			}
		}
	}
}

// resolveAll finds what a repository names by digests of other algorithms.
func (s *Storage) resolveAll(r *inventory.Repository) error {
	r.Resolved, r.Unresolved = nil, nil
	for k := range r.Manifests {
		m := r.Manifests[k].Manifest
		if onlySums(m) {
			continue
		}
		for d := range reaches(m) {
			if isSHA256(d) || r.Resolved[d] != "" {
				continue
			}
			target, err := s.resolve(r.Name, d)
			switch {
			case err != nil:
				return err
			case target == "":
				r.Unresolved = append(r.Unresolved, inventory.Lack{Repository: r.Name, Manifest: m.Digest, Digest: d})
				continue
			case r.Resolved == nil:
				r.Resolved = map[content.Digest]content.Digest{}
			}
			r.Resolved[d] = target
		}
	}
	return nil
}

// onlySums reports whether a manifest names all by sha256, as nearly all do.
func onlySums(m *content.Manifest) bool {
	other := func(d content.Digest) bool { return !isSHA256(d) }
	return !slices.ContainsFunc(m.Blobs, func(b content.Blob) bool {
		_, is := b.Sum()
		return !is
	}) && !slices.ContainsFunc(m.Children, other) && !slices.ContainsFunc(m.Foreign, other)
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
func (s *Storage) orphans(stored *blobs, removed map[content.Digest]time.Time) (map[content.Sum]*inventory.Orphan, error) {
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
		m, doubt, err := s.manifest(h)
		if err != nil || doubt != nil {
			continue
		}
		for d := range reaches(m) {
			if target, err := s.resolve(r.Repository, d); err == nil && target != "" {
				note(target, r.At)
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

// linksTo finds which repositories have links to orphans, and when those were written; links to
// what is not stored; and links to blobs that no manifest of their repository names.
func (s *Storage) linksTo(
	ctx context.Context, stored *blobs, orphans map[content.Sum]*inventory.Orphan, all []looked, removed map[content.Digest]time.Time,
) error {
	var mu sync.Mutex // of the orphans
	return inParallel(ctx, len(all), func(i int) error {
		repository := &all[i].Repository
		named := stored.namedBy(repository)
		defer named.release()
		link := func(digest content.Digest, h content.Sum, linked time.Time) error {
			if o := orphans[h]; o != nil {
				mu.Lock()
				defer mu.Unlock()
				o.Link(repository.Name, digest, linked)
				return nil
			}
			if there, err := s.exists(s.data(h.Digest())); err != nil {
				return err
			} else if !there { // nor pushed meanwhile
				repository.Dangling = append(repository.Dangling, inventory.Link{Digest: digest, Linked: linked})
				return nil
			}
			repository.Unnamed = append(repository.Unnamed, inventory.Link{Digest: digest, Linked: linked, Removed: removed[h.Digest()]})
			return nil
		}
		for _, h := range all[i].links {
			if orphans[h] == nil && named.has(h) {
				continue
			}
			linked, err := s.written(s.link(repository.Name, layersDir, h.Digest()))
			if err != nil {
				return err
			}
			if linked.IsZero() {
				continue
			}
			if err := link(h.Digest(), h, linked); err != nil {
				return err
			}
		}
		for _, a := range all[i].aliases {
			h, is := a.target.Sum()
			if !is || orphans[h] == nil && named.has(h) {
				continue
			}
			if err := link(a.digest, h, a.linked); err != nil {
				return err
			}
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
		if strings.HasPrefix(r.Repositories[i].Name, ownDir+"/") {
			return nil // the janitor's own come and go as it checks the registry
		}
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
			if children[d] && m.Of == content.Index {
				continue // a manifest, whatever the index says that it is
			}
			there, err := s.pullable(r.Name, d, linked[d])
			if err != nil {
				return nil, err
			}
			if !there {
				lacks = append(lacks, inventory.Lack{Repository: r.Name, Manifest: m.Digest, Digest: d})
			}
		}
		for _, child := range m.Children {
			there := children[child]
			if !there && !isSHA256(child) {
				if there, err = s.exists(s.link(r.Name, revisionsDir, child)); err != nil {
					return nil, err
				}
			}
			if !there {
				lacks = append(lacks, inventory.Lack{Repository: r.Name, Manifest: m.Digest, Digest: child, Child: true})
			}
		}
	}
	return lacks, nil
}

// pullable reports whether a blob is there and linked.
func (s *Storage) pullable(repository string, digest content.Digest, linked bool) (bool, error) {
	stored := digest
	if !isSHA256(digest) {
		var err error
		if stored, err = s.target(repository, digest); err != nil {
			return false, err
		}
		linked = stored != ""
	}
	if !linked {
		return false, nil
	}
	for _, path := range []string{s.data(stored), s.link(repository, layersDir, digest)} {
		if there, err := s.exists(path); err != nil || !there {
			return false, err
		}
	}
	return true, nil
}
