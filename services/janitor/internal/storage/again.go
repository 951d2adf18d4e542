package storage

import (
	"slices"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// looked is a repository as it was looked at, and when its directories were last changed
// then: what has not changed is not read again.
type looked struct {
	inventory.Repository
	read                    time.Time // when that was begun
	revisions, tags, layers time.Time
	created                 bool          // that was looked for
	deleted                 bool          // there are revisions without a link, which may come back
	links                   []content.Sum // of layers
	aliases                 []alias       // of layers, by other algorithms
	layersTop, revisionsTop time.Time     // of the directories above those
	same                    bool          // as in the look before
	tagged                  bool          // no push was between its revision and its tag as tags were read
}

// tagging is far more than a push takes from its revision to its tag: the registry writes one
// link after the other.
const tagging = 10 * time.Minute

// settle notes whether tags that were read at a time can change without a revision's link.
func (l *looked) settle(read time.Time) {
	l.tagged = !slices.ContainsFunc(l.Manifests, func(m inventory.Manifest) bool { return m.Linked.After(read.Add(-tagging)) })
}

// again is a repository that is as it was looked at last; false when it may not be, and has
// to be read. Its links are looked at one by one: to push what is there writes only these. A
// push of a tag writes the link of its revision, too, and first: for what is looked at once
// more before it goes, tags are not looked at when no revision tells of a push.
func (s *Storage) again(name string, look inventory.Look) (looked, bool, error) {
	was := s.before(name)
	if was == nil || look.Created && !was.created || len(was.Doubts)+len(was.Uploads)+len(was.aliases) > 0 {
		return looked{}, false, nil
	}
	is := *was
	is.same = false
	before := was.read.Add(-s.files.settled())
	if was.revisions.IsZero() || was.deleted { // it has no revisions, or directories do not tell
		return is, false, nil
	}
	err := s.within(s.repositoryDir(name), func(in place) error {
		for _, dir := range []struct {
			path string
			at   time.Time
		}{
			{revisionsDir + "/" + sha256, was.revisions}, {tagsDir, was.tags}, {layersDir + "/" + sha256, was.layers},
			{revisionsDir, was.revisionsTop}, {layersDir, was.layersTop},
		} {
			now, err := in.stat(dir.path)
			if err != nil || !now.modified.Equal(dir.at) || dir.at.After(before) {
				return err
			}
		}
		uploads, err := s.uploading(in, name)
		if err != nil || uploads {
			return err
		}
		is.same, err = sameRevisions(in, was.Manifests, before)
		if err != nil || !is.same || look.Ahead && was.tagged {
			return err
		}
		read := time.Now()
		is.same, err = sameTags(in, was.Tags, before)
		is.settle(read)
		return err
	})
	return is, is.same, err
}

// uploading reports whether uploads are under way.
func (s *Storage) uploading(in place, repository string) (bool, error) {
	dir, err := in.stat(uploadsDir)
	if err != nil || !dir.there {
		return false, err
	}
	ids, err := s.names(s.repositoryDir(repository) + "/" + uploadsDir)
	return len(ids) > 0, err
}

func sameRevisions(in place, all []inventory.Manifest, before time.Time) (bool, error) {
	return same(in, revisionsDir+"/"+sha256, before, len(all), func(i int) (string, time.Time) {
		return hexOf(all[i].Digest) + "/link", all[i].Linked
	})
}

func sameTags(in place, all []inventory.Tag, before time.Time) (bool, error) {
	return same(in, tagsDir, before, len(all), func(i int) (string, time.Time) { return all[i].Name + "/current/link", all[i].Moved })
}

// same reports whether files below a directory were last written at these times, and these are
// before another.
func same(in place, dir string, before time.Time, n int, file func(i int) (path string, at time.Time)) (same bool, _ error) {
	if n == 0 {
		return true, nil
	}
	err := in.within(dir, func(in place) error {
		for i := range n {
			path, at := file(i)
			is, err := in.stat(path)
			if err != nil || !is.modified.Equal(at) || at.After(before) {
				return err
			}
		}
		same = true
		return nil
	})
	return same, err
}

// stored is what nothing names, how large the other blobs are, by the numbers of those, and when
// the directories of blobs were changed.
type stored struct {
	read    time.Time // when the look began
	shards  []time.Time
	orphans []inventory.Orphan
	bytes   []int64
}

// sameStored is what was found last, as it is now; false when what is stored or what names it
// has changed.
func (s *Storage) sameStored(all []looked, shards []directory, look inventory.Look) (found stored, same bool, _ error) {
	s.lastMu.Lock()
	was, count := s.lastStored, len(s.last)
	s.lastMu.Unlock()
	if was == nil || count != len(all) || slices.ContainsFunc(all, func(r looked) bool { return !r.same }) ||
		!slices.EqualFunc(was.shards, shards, func(at time.Time, d directory) bool {
			return !at.IsZero() && at.Equal(d.at) && at.Before(was.read.Add(-s.files.settled()))
		}) {
		return found, false, nil
	}
	found.bytes, found.read = was.bytes, was.read
	removed := s.removed(look.Removed)
	for _, last := range was.orphans {
		o, err := s.orphan(last.Digest)
		if err != nil || o == nil {
			return found, false, err
		}
		o.Repositories, o.Removed = last.Repositories, removed[o.Digest]
		for _, repository := range o.Repositories {
			at, err := s.written(s.link(repository, layersDir, o.Digest))
			if err != nil || at.IsZero() {
				return found, false, err
			}
			if at.After(o.Changed) {
				o.Changed = at
			}
		}
		found.orphans = append(found.orphans, *o)
	}
	return found, true, nil
}

// remember keeps what a look has found, for the next one.
func (s *Storage) remember(all []looked, shards []directory, found stored) {
	last := make(map[string]*looked, len(all))
	for i := range all {
		last[all[i].Name] = &all[i]
	}
	found.shards = nil
	for _, d := range shards {
		found.shards = append(found.shards, d.at)
	}
	s.lastMu.Lock()
	defer s.lastMu.Unlock()
	s.last, s.lastStored = last, &found
}

// before is a repository as it was looked at last; nil: not yet.
func (s *Storage) before(name string) *looked {
	s.lastMu.Lock()
	defer s.lastMu.Unlock()
	return s.last[name]
}
