package storage

import (
	"context"
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// Wanted is what of the digests that a run has taken is wanted again: what has a link that
// a push or mount has made since it was taken, and what a manifest names that is not among
// those that were marked. All repositories are looked at, by the names of their
// directories alone.
func (s *Storage) Wanted(ctx context.Context, marked inventory.Registry, taken func(content.Digest) bool) ([]inventory.Lack, error) {
	s, err := s.now(ctx)
	if err != nil {
		return nil, err
	}
	repositories, err := s.repositories(ctx)
	if err != nil {
		return nil, err
	}
	known := knownIn(marked, repositories)
	found := make([][]inventory.Lack, len(repositories))
	err = inParallel(ctx, len(repositories), func(i int) (err error) {
		found[i], err = s.wantedIn(ctx, repositories[i], known[repositories[i]], taken)
		return err
	})
	return slices.Concat(found...), err
}

// WantedIn is Wanted in some repositories, of what was taken from each.
func (s *Storage) WantedIn(ctx context.Context, repositories []string, marked inventory.Registry, taken func(repository string, digest content.Digest) bool) ([]inventory.Lack, error) {
	known := knownIn(marked, repositories)
	found := make([][]inventory.Lack, len(repositories))
	err := inParallel(ctx, len(repositories), func(i int) error {
		name := repositories[i]
		now, err := s.nowBelow(ctx, s.repositoryDir(name))
		if err != nil {
			return err
		}
		found[i], err = now.wantedIn(ctx, name, known[name], func(d content.Digest) bool { return taken(name, d) })
		return err
	})
	return slices.Concat(found...), err
}

// knownIn are the manifests that were marked, by repository, of those that are looked at.
func knownIn(marked inventory.Registry, repositories []string) map[string]map[content.Digest]bool {
	known := make(map[string]map[content.Digest]bool, len(repositories))
	for _, name := range repositories {
		known[name] = nil
	}
	for _, r := range marked.Repositories {
		if _, looked := known[r.Name]; !looked {
			continue
		}
		of := make(map[content.Digest]bool, len(r.Manifests))
		for _, m := range r.Manifests {
			of[m.Digest] = true
		}
		for _, d := range r.Doubts {
			of[d.Digest] = !d.Missing
		}
		known[r.Name] = of
	}
	return known
}

func (s *Storage) wantedIn(ctx context.Context, repository string, known map[content.Digest]bool, taken func(content.Digest) bool) ([]inventory.Lack, error) {
	all, err := s.linkedTaken(repository, taken)
	if err != nil {
		return nil, err
	}
	strangers, _, err := s.strangers(repository)
	if err != nil {
		return nil, err
	}
	for _, d := range strangers {
		if !known[d.Digest] {
			return nil, fmt.Errorf("%s: %s", repository, d.Message) // it may name anything
		}
	}
	revisions, err := s.names(s.linksDir(repository, revisionsDir))
	if err != nil {
		return nil, err
	}
	for _, hex := range revisions {
		h, ok := content.SumOf(hex)
		d := content.Digest(sha256 + ":" + hex)
		if !ok || known[d] && !taken(d) {
			continue
		}
		linked, err := s.exists(s.link(repository, revisionsDir, d))
		if err != nil {
			return nil, err
		}
		if !linked {
			continue
		}
		if taken(d) {
			all = append(all, inventory.Lack{Repository: repository, Manifest: d, Digest: d, Child: true})
		}
		m, doubt, err := s.manifest(h)
		switch {
		case err != nil:
			return nil, err
		case doubt != nil && doubt.Bytes > 0:
			return nil, fmt.Errorf("%s: %s", repository, doubt.Message) // it may name anything
		case doubt != nil:
			continue // its bytes are wanted first
		}
		some, err := s.namesTaken(repository, m, taken)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	if s.files.atomic() {
		return all, nil
	}
	retagged, err := s.retagged(ctx, repository, taken)
	return append(all, retagged...), err
}

// namesTaken is what of a manifest is taken.
func (s *Storage) namesTaken(
	repository string, m *content.Manifest, taken func(content.Digest) bool,
) (all []inventory.Lack, _ error) {
	for d := range reaches(m) {
		stored, err := s.resolve(repository, d)
		switch {
		case err != nil:
			return nil, err
		case stored == "": // it may be anything
			return nil, fmt.Errorf("%s: manifest %s names %s, which no link of the repository resolves", repository, m.Digest, d)
		case !taken(stored):
			continue
		}
		all = append(all, inventory.Lack{Repository: repository, Manifest: m.Digest, Digest: stored, Child: slices.Contains(m.Children, d)})
		if stored != d {
			all = append(all, inventory.Lack{Repository: repository, Manifest: m.Digest, Digest: d})
		}
	}
	return all, nil
}

// linkedTaken is what of a repository's links leads to what is taken.
func (s *Storage) linkedTaken(repository string, taken func(content.Digest) bool) (all []inventory.Lack, _ error) {
	layers, err := s.names(s.linksDir(repository, layersDir))
	if err != nil {
		return nil, err
	}
	for _, hex := range layers {
		if d := content.Digest(sha256 + ":" + hex); taken(d) {
			if linked, err := s.exists(s.link(repository, layersDir, d)); err != nil {
				return nil, err
			} else if linked {
				all = append(all, inventory.Lack{Repository: repository, Digest: d})
			}
		}
	}
	aliases, _, err := s.aliases(repository)
	if err != nil {
		return nil, err
	}
	for _, a := range aliases {
		if taken(a.target) {
			all = append(all, inventory.Lack{Repository: repository, Digest: a.target})
		}
	}
	return all, nil
}
