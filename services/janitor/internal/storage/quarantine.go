package storage

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
)

// Quarantine is what one run has taken. It is a tree like that of the registry, so that
// what is in it says where it belongs, and a journal. Each thing is taken by a rename, and
// looked at once it is taken: when it is not as it was when the run decided on it, it goes
// back. So a push at that moment is not lost.
type Quarantine struct {
	storage *Storage
	run     string
	journal log
}

func (q *Quarantine) dir() string { return q.storage.own("quarantine", q.run) }

// in is where something of the registry's tree is, or would be, in the quarantine.
func (q *Quarantine) in(path string) string {
	relative := strings.TrimPrefix(path, q.storage.path()+string(filepath.Separator))
	return filepath.Join(q.dir(), "tree", relative)
}

// Manifest takes a manifest out of its repository, and those tags of it. taken is false
// when it was pushed meanwhile, or is gone.
func (q *Quarantine) Manifest(repository string, digest content.Digest, linked time.Time, tags []inventory.Tag) (taken bool, err error) {
	s := q.storage
	link := s.link(repository, revisionsDir, digest)
	taken, err = q.takeIf(link, func(link stat, _ string) bool { return link.modified.Equal(linked) })
	if err != nil || !taken {
		return false, err
	}
	q.storage.files.tidy(filepath.Dir(link), s.linksDir(repository, revisionsDir))
	failpoint.Hit("janitor.unlinked")
	for _, tag := range tags {
		if _, err := q.tag(repository, tag.Name, tag.Moved, func(text string) bool { return text == string(digest) }); err != nil {
			return true, err
		}
	}
	return true, nil
}

// Copy copies the links of a manifest and of its tags to the quarantine: the registry is to delete
// them itself, and they can come back.
func (q *Quarantine) Copy(repository string, digest content.Digest, tags []string) error {
	links, err := q.linksOf(repository, digest, tags)
	if err != nil {
		return err
	}
	for _, link := range links {
		text, err := q.storage.files.read(link, maxLink)
		if errors.Is(err, errGone) {
			continue
		}
		if err == nil {
			err = q.storage.files.put(q.in(link), text)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Drop removes copies of the links of a manifest: the registry has them still.
func (q *Quarantine) Drop(repository string, digest content.Digest, tags []string) error {
	links, err := q.linksOf(repository, digest, tags)
	if err != nil {
		return err
	}
	for _, link := range links {
		err = errors.Join(err, q.storage.files.remove(context.Background(), q.in(link)))
	}
	return err
}

// linksOf are the links of a manifest and of tags.
func (q *Quarantine) linksOf(repository string, digest content.Digest, tags []string) ([]string, error) {
	links := []string{q.storage.link(repository, revisionsDir, digest)}
	for _, tag := range tags {
		index := filepath.Join(q.storage.tagDir(repository, tag), "index", sha256)
		hexes, err := q.storage.names(index)
		if err != nil {
			return nil, err
		}
		for _, hex := range hexes {
			links = append(links, filepath.Join(index, hex, "link"))
		}
		links = append(links, filepath.Join(q.storage.tagDir(repository, tag), "current", "link"))
	}
	return links, nil
}

// Tag takes a tag that leads nowhere. taken is false when it was moved meanwhile, or what it
// leads to was pushed.
func (q *Quarantine) Tag(repository string, tag inventory.Tag) (taken bool, err error) {
	return q.tag(repository, tag.Name, tag.Moved, func(text string) bool {
		if text != string(tag.Lost) || text == "" {
			return text == string(tag.Lost)
		}
		there, err := q.storage.exists(q.storage.link(repository, revisionsDir, tag.Lost))
		return err == nil && !there
	})
}

// tag takes a tag that was not moved since, and whose link is as it should be. It reports
// whether the tag is gone.
func (q *Quarantine) tag(repository, tag string, moved time.Time, is func(link string) bool) (gone bool, err error) {
	current := filepath.Join(q.storage.tagDir(repository, tag), "current", "link")
	taken, err := q.takeIf(current, func(link stat, text string) bool { return link.modified.Equal(moved) && is(text) })
	if err != nil {
		return false, err
	}
	if !taken {
		if there, err := q.storage.exists(current); err != nil || there {
			return false, err
		}
	}
	err = q.history(repository, tag, moved)
	if err == nil && !q.storage.files.atomic() {
		err = q.putMoved(repository, tag, moved)
	}
	if err != nil {
		return false, err
	}
	there, err := q.storage.exists(q.storage.tagDir(repository, tag))
	return !there, err
}

// putMoved puts a tag back that was moved as it was taken: a push notes first, among what the
// tag has led to, what it moves it to.
func (q *Quarantine) putMoved(repository, tag string, since time.Time) error {
	entries := filepath.Join(q.storage.tagDir(repository, tag), "index", sha256)
	hexes, err := q.storage.names(entries)
	last, at := "", since
	for i := 0; i < len(hexes) && err == nil; i++ {
		var one time.Time
		if one, err = q.storage.written(filepath.Join(entries, hexes[i], "link")); one.After(at) {
			last, at = hexes[i], one
		}
	}
	if err != nil || last == "" {
		return err
	}
	return q.storage.files.put(filepath.Join(q.storage.tagDir(repository, tag), "current", "link"), []byte(sha256+":"+last))
}

// history takes what a tag that is gone led to before, up to a time, and what is then left
// of it. A push of the tag at this moment writes there first.
func (q *Quarantine) history(repository, tag string, until time.Time) error {
	dir := q.storage.tagDir(repository, tag)
	entries := filepath.Join(dir, "index", sha256)
	hexes, err := q.storage.names(entries)
	if err != nil {
		return err
	}
	for _, hex := range hexes {
		entry := filepath.Join(entries, hex, "link")
		if _, err := q.takeIf(entry, func(link stat, _ string) bool { return !link.modified.After(until) }); err != nil {
			return err
		}
		q.storage.files.tidy(filepath.Dir(entry), filepath.Dir(dir))
	}
	q.storage.files.tidy(entries, filepath.Dir(dir))
	q.storage.files.tidy(filepath.Join(dir, "current"), filepath.Dir(dir))
	return nil
}

// takeIf takes a link that is as it should be by its file and its text.
func (q *Quarantine) takeIf(path string, is func(link stat, text string) bool) (bool, error) {
	return q.storage.files.takeIf(path, q.in(path), is)
}

// Hide takes the links to a blob that nothing names, so that pushes upload it again.
// hidden is false when a push or mount has linked it meanwhile.
func (q *Quarantine) Hide(o inventory.Orphan) (hidden bool, err error) {
	hidden = true
	for _, link := range o.Links() {
		taken, err := q.hide(q.storage.layerLink(o.Digest, link), o.Changed)
		if err != nil {
			return false, err
		}
		hidden = hidden && taken
	}
	return hidden, nil
}

// Link takes a repository's link to a blob, unless it is newer than that.
func (q *Quarantine) Link(repository string, digest content.Digest, changed time.Time) (bool, error) {
	return q.hide(q.storage.link(repository, layersDir, digest), changed)
}

func (q *Quarantine) hide(link string, changed time.Time) (bool, error) {
	taken, err := q.takeIf(link, func(link stat, _ string) bool { return !link.modified.After(changed) })
	if dir := filepath.Dir(link); taken {
		q.storage.files.tidy(dir, filepath.Dir(dir))
	}
	return taken, err
}

// Blob takes the bytes of a blob; false when they are gone, or were written meanwhile.
func (q *Quarantine) Blob(o inventory.Orphan) (bool, error) {
	is, err := q.storage.orphan(o.Digest)
	if err != nil || is == nil || is.Changed.After(o.Changed) {
		return false, err
	}
	dir := filepath.Dir(q.storage.data(o.Digest))
	return q.storage.files.take(dir, q.in(dir))
}

// Upload takes an upload that was abandoned, unless it goes on.
func (q *Quarantine) Upload(repository string, u inventory.Upload) (bool, error) {
	is, err := q.storage.upload(repository, u.ID)
	if err != nil || is.Changed.After(u.Changed) {
		return false, err
	}
	dir := filepath.Join(q.storage.repositoryDir(repository), uploadsDir, u.ID)
	return q.storage.files.take(dir, q.in(dir))
}

// Show puts back the links to a blob that Hide has taken.
func (q *Quarantine) Show(digest content.Digest, links []string) error {
	for _, name := range links {
		link := q.storage.layerLink(digest, name)
		if _, occupied, err := q.storage.files.giveBack(q.in(link), link); err != nil {
			return err
		} else if occupied {
			_ = q.storage.files.remove(context.Background(), q.in(link)) // a newer one is there
		}
	}
	return nil
}

// Return puts back the bytes of a blob. Bytes that were uploaded anew stay, and the copy
// goes. It reports whether the blob is there now.
func (q *Quarantine) Return(digest content.Digest) (bool, error) {
	data := q.storage.data(digest)
	dir := filepath.Dir(data)
	given, occupied, err := q.storage.files.giveBack(q.in(dir), dir)
	if err != nil || given {
		return given, err
	}
	if occupied { // by a push that has its bytes there, or is about to
		if _, _, err := q.storage.files.giveBack(q.in(data), data); err != nil {
			return false, err
		}
		if err := q.storage.files.remove(context.Background(), q.in(dir)); err != nil {
			return false, err
		}
	}
	return q.storage.exists(data)
}

// Undo puts right a manifest that was taken by half: one that a tag leads to still comes
// back, and of a tag that is gone nothing is left.
func (q *Quarantine) Undo(e quarantine.Entry) error {
	for _, tag := range e.Tags {
		text, err := q.storage.read(filepath.Join(q.storage.tagDir(e.Repository, tag), "current", "link"), maxLink)
		switch {
		case errors.Is(err, errGone):
			err = q.history(e.Repository, tag, e.Pushed)
		case err == nil && strings.TrimSpace(string(text)) == e.Digest:
			return q.storage.giveBackManifest(q, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Same reports whether the link of a manifest is as it was.
func (q *Quarantine) Same(repository string, digest content.Digest, linked time.Time) (bool, error) {
	link, err := q.storage.stat(q.storage.link(repository, revisionsDir, digest))
	return err == nil && link.there && link.modified.Equal(linked), err
}

// DropEmpty removes the directories of a repository in which nothing is but links to blobs
// that are older than a time, which go too: no manifest of it names them.
func (q *Quarantine) DropEmpty(repository string, before time.Time) error {
	s := q.storage
	links, err := s.layerLinks(repository)
	if err != nil {
		return err
	}
	for _, d := range links {
		if _, err := q.Link(repository, d, before); err != nil {
			return err
		}
	}
	return s.files.tidyBelow(s.repositoryDir(repository), s.path("repositories"))
}

// Holds reports whether what an entry names is in quarantine.
func (s *Storage) Holds(e quarantine.Entry) (bool, error) {
	return s.exists((&Quarantine{storage: s, run: e.Run}).in(s.place(e)))
}

// place is where the thing of an entry belongs.
func (s *Storage) place(e quarantine.Entry) string {
	digest := content.Digest(e.Digest)
	switch {
	case e.Kind == "blob":
		return filepath.Dir(s.data(digest))
	case e.Kind == "upload":
		return filepath.Join(s.repositoryDir(e.Repository), uploadsDir, e.Digest)
	case e.Kind == "manifest":
		return s.link(e.Repository, revisionsDir, digest)
	case len(e.Tags) > 0:
		return filepath.Join(s.tagDir(e.Repository, e.Tags[0]), "current", "link")
	default:
		return s.link(e.Repository, layersDir, digest)
	}
}

func (s *Storage) tagDir(repository, tag string) string {
	return filepath.Join(s.repositoryDir(repository), manifestsDir, "tags", tag)
}

// runs are the ids of runs that have a quarantine, the oldest first by their names.
func (s *Storage) runs() ([]string, error) {
	all, err := s.files.names(s.own("quarantine"))
	slices.Sort(all)
	return slices.DeleteFunc(all, func(name string) bool { return strings.HasPrefix(name, ".") || slices.Contains(all, purged+name) }), err
}

// purged begins the names of quarantines that are to go for good.
const purged = ".purge-"

// Purge removes what entries name for good.
func (s *Storage) Purge(entries []quarantine.Entry) error {
	for _, e := range entries {
		q := &Quarantine{storage: s, run: e.Run}
		if err := s.files.remove(context.Background(), q.in(s.place(e))); err != nil {
			return err
		}
		for _, link := range e.Linked {
			if err := s.files.remove(context.Background(), q.in(s.layerLink(content.Digest(e.Digest), link))); err != nil {
				return err
			}
		}
	}
	return nil
}

// PurgeRuns removes the quarantines of runs for good.
func (s *Storage) PurgeRuns(ctx context.Context, runs []string) error {
	for _, run := range runs {
		// Out of sight first: what is half gone cannot be restored.
		if err := s.files.hide(s.own("quarantine", run), s.own("quarantine", purged+run)); err != nil {
			return denied(err)
		}
		failpoint.Hit("janitor.outofsight")
	}
	all, err := s.names(s.own("quarantine"))
	if err != nil {
		return err
	}
	for _, name := range all {
		run, is := strings.CutPrefix(name, purged)
		if !is {
			continue
		}
		for _, name := range []string{run, name} { // where it was hidden is the last to go
			if err := s.files.remove(ctx, s.own("quarantine", name)); err != nil {
				return err
			}
		}
	}
	return nil
}
