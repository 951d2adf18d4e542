package storage

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
)

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
