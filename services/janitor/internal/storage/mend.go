package storage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
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

func (s *Storage) wantedIn(ctx context.Context, repository string, known map[content.Digest]bool, taken func(content.Digest) bool) (all []inventory.Lack, _ error) {
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

// Retagged is what tags of repositories lead to of that which is gone, with what it lists, that
// first: pushes wrote the links of these at the moment that they were taken.
func (s *Storage) Retagged(ctx context.Context, repositories []string, gone func(repository string, digest content.Digest) bool) ([]inventory.Lack, error) {
	found := make([][]inventory.Lack, len(repositories))
	err := inParallel(ctx, len(repositories), func(i int) error {
		name := repositories[i]
		now, err := s.nowBelow(ctx, s.repositoryDir(name)+"/"+tagsDir)
		if err != nil {
			return err
		}
		found[i], err = now.retagged(ctx, name, func(d content.Digest) bool { return gone(name, d) })
		return err
	})
	return slices.Concat(found...), err
}

func (s *Storage) retagged(ctx context.Context, repository string, gone func(content.Digest) bool) (all []inventory.Lack, _ error) {
	tags, _, err := s.readTags(ctx, repository)
	seen := map[content.Digest]bool{}
	for i := 0; i < len(tags) && err == nil; i++ {
		var of []inventory.Lack
		of, err = s.gonePart(repository, tags[i].Digest, tags[i].Digest, gone, seen)
		all = append(all, of...)
	}
	return all, err
}

// gonePart is what is gone of a manifest and of those that it lists, these first.
func (s *Storage) gonePart(repository string, of, digest content.Digest, gone func(content.Digest) bool, seen map[content.Digest]bool) (all []inventory.Lack, _ error) {
	h, ok := digest.Sum()
	if !ok || seen[digest] || !gone(digest) {
		return nil, nil
	}
	seen[digest] = true
	linked, err := s.exists(s.link(repository, revisionsDir, digest))
	if err != nil || linked {
		return nil, err
	}
	var children []content.Digest
	m, doubt, err := s.manifest(h)
	if err == nil && doubt == nil { // else its bytes are wanted first
		children = m.Children
	}
	for i := 0; i < len(children) && err == nil; i++ {
		var some []inventory.Lack
		some, err = s.gonePart(repository, digest, children[i], gone, seen)
		all = append(all, some...)
	}
	return append(all, inventory.Lack{Repository: repository, Manifest: of, Digest: digest, Child: true}), err
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

// Mend brings back from the quarantines what is lacking. It reports whether it is there
// now. A link that no run has taken is not made: to link is to let a repository's readers
// read.
func (s *Storage) Mend(l inventory.Lack) (bool, error) { return s.mend(l, false) }

// mend makes the link of a blob, too, where no quarantine has it.
func (s *Storage) mend(l inventory.Lack, links bool) (bool, error) {
	runs, err := s.runs()
	if err != nil {
		return false, err
	}
	slices.Reverse(runs) // the last that took it
	stored, err := s.resolve(l.Repository, l.Digest)
	if err != nil || stored == "" {
		return false, err
	}
	there, err := s.exists(s.data(stored))
	for i := 0; i < len(runs) && err == nil && !there; i++ {
		there, err = (&Quarantine{storage: s, run: runs[i]}).Return(stored)
	}
	if err != nil || !there {
		return false, err
	}
	link := s.link(l.Repository, layersDir, l.Digest)
	if !l.Child {
		if there, err = s.mendLink(runs, link); err != nil || there {
			return there, err
		}
	}
	// An index may say that a manifest is something else.
	there, err = s.mendLink(runs, s.link(l.Repository, revisionsDir, l.Digest))
	if err != nil || there || l.Child || !links {
		return there, err
	}
	return true, s.files.put(link, []byte(stored))
}

// mendLink brings a link back from the quarantines of runs, and reports whether it is there.
func (s *Storage) mendLink(runs []string, link string) (there bool, err error) {
	there, err = s.exists(link)
	for i := 0; i < len(runs) && err == nil && !there; i++ {
		_, _, err = s.files.giveBack((&Quarantine{storage: s, run: runs[i]}).in(link), link)
		if err == nil {
			there, err = s.exists(link)
		}
	}
	return there, err
}

// Restore brings back what an entry names, with all that it needs. What was restored counts
// as pushed at a time. present is that the registry has it again meanwhile; missing that a
// part of it was purged.
func (s *Storage) Restore(e quarantine.Entry, at time.Time) (present, missing bool, err error) {
	q := &Quarantine{storage: s, run: e.Run}
	place := s.place(e)
	switch {
	case e.Kind == "blob":
		if present, err = s.exists(s.data(content.Digest(e.Digest))); err == nil {
			_, err = q.Return(content.Digest(e.Digest))
		}
		if err == nil {
			err = q.Show(content.Digest(e.Digest), e.Linked)
		}
		return present, false, err
	case e.Kind != "manifest":
		_, present, err = s.files.giveBack(q.in(place), place)
		return present, false, err
	}
	if err := s.restoreNeeds(e.Repository, content.Digest(e.Digest), map[content.Digest]bool{}); err != nil {
		if errors.Is(err, errPurged) {
			return false, true, nil
		}
		return false, false, err
	}
	failpoint.Hit("janitor.restoring")
	if present, err = s.exists(place); err != nil {
		return present, false, err
	}
	err = s.giveBackManifest(q, e)
	if err == nil && !present {
		err = s.files.touch(place, at)
	}
	return present, false, err
}

// giveBackManifest puts back the links of a manifest and its tags. Those that are there
// stay.
func (s *Storage) giveBackManifest(q *Quarantine, e quarantine.Entry) error {
	links := []string{s.place(e)}
	for _, tag := range e.Tags {
		index := filepath.Join(s.tagDir(e.Repository, tag), "index", sha256)
		hexes, err := s.names(q.in(index))
		if err != nil {
			return err
		}
		for _, hex := range hexes {
			links = append(links, filepath.Join(index, hex, "link"))
		}
		links = append(links, filepath.Join(s.tagDir(e.Repository, tag), "current", "link"))
	}
	for _, link := range links {
		if _, _, err := s.files.giveBack(q.in(link), link); err != nil {
			return err
		}
	}
	return nil
}

// errPurged is that what a manifest needs is nowhere any more.
var errPurged = errors.New("it was purged")

// restoreNeeds brings back the bytes of a manifest and all that it names.
func (s *Storage) restoreNeeds(repository string, digest content.Digest, seen map[content.Digest]bool) error {
	if seen[digest] {
		return nil
	}
	seen[digest] = true
	// Its own link is the last to come back, so that nobody sees half of it.
	if err := s.restoreData(digest); err != nil {
		return err
	}
	h, ok := digest.Sum()
	if !ok {
		return nil
	}
	m, doubt, err := s.manifest(h)
	if err != nil || doubt != nil {
		return err
	}
	for _, b := range m.Blobs {
		there, err := s.mend(inventory.Lack{Repository: repository, Manifest: digest, Digest: b.Digest()}, true) // its push was accepted
		if err != nil {
			return err
		}
		if !there {
			return errPurged
		}
	}
	for _, child := range m.Children {
		if !isSHA256(child) {
			continue // the registry has none
		}
		if err := s.restoreNeeds(repository, child, seen); err != nil {
			return err
		}
		if there, err := s.mend(inventory.Lack{Repository: repository, Manifest: digest, Digest: child, Child: true}, true); err != nil || !there {
			return errors.Join(err, errPurged)
		}
	}
	return nil
}

// restoreData brings back the bytes of a blob.
func (s *Storage) restoreData(digest content.Digest) error {
	there, err := s.exists(s.data(digest))
	if err != nil || there {
		return err
	}
	runs, err := s.runs()
	if err != nil {
		return err
	}
	for _, run := range runs {
		if there, err := (&Quarantine{storage: s, run: run}).Return(digest); err != nil || there {
			return err
		}
	}
	return errPurged
}
