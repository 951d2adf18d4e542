package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
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
	journal *os.File
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
	taken, err = q.takeIf(link, func(info os.FileInfo, _ string) bool { return info.ModTime().Equal(linked) })
	if err != nil || !taken {
		return false, err
	}
	tidy(filepath.Dir(link), s.linksDir(repository, revisionsDir))
	failpoint.Hit("janitor.unlinked")
	for _, tag := range tags {
		if _, err := q.tag(repository, tag.Name, tag.Moved, func(text string) bool { return text == string(digest) }); err != nil {
			return true, err
		}
	}
	return true, nil
}

// Tag takes a tag that leads nowhere. taken is false when it was moved meanwhile, or what it
// leads to was pushed.
func (q *Quarantine) Tag(repository string, tag inventory.Tag) (taken bool, err error) {
	return q.tag(repository, tag.Name, tag.Moved, func(text string) bool {
		if text != string(tag.Lost) || text == "" {
			return text == string(tag.Lost)
		}
		there, err := exists(q.storage.link(repository, revisionsDir, tag.Lost))
		return err == nil && !there
	})
}

// tag takes a tag that was not moved since, and whose link is as it should be. It reports
// whether the tag is gone.
func (q *Quarantine) tag(repository, tag string, moved time.Time, is func(link string) bool) (gone bool, err error) {
	current := filepath.Join(q.storage.tagDir(repository, tag), "current", "link")
	taken, err := q.takeIf(current, func(info os.FileInfo, text string) bool { return info.ModTime().Equal(moved) && is(text) })
	if err != nil {
		return false, err
	}
	if !taken {
		if there, err := exists(current); err != nil || there {
			return false, err
		}
	}
	return true, q.history(repository, tag, moved)
}

// history takes what a tag that is gone led to before, up to a time, and what is then left
// of it. A push of the tag at this moment writes there first.
func (q *Quarantine) history(repository, tag string, until time.Time) error {
	dir := q.storage.tagDir(repository, tag)
	entries := filepath.Join(dir, "index", sha256)
	hexes, err := names(entries)
	if err != nil {
		return err
	}
	for _, hex := range hexes {
		entry := filepath.Join(entries, hex, "link")
		if _, err := q.takeIf(entry, func(info os.FileInfo, _ string) bool { return !info.ModTime().After(until) }); err != nil {
			return err
		}
		tidy(filepath.Dir(entry), filepath.Dir(dir))
	}
	tidy(entries, filepath.Dir(dir))
	tidy(filepath.Join(dir, "current"), filepath.Dir(dir))
	return nil
}

// takeIf takes a link that is as it should be by its file and its text.
func (q *Quarantine) takeIf(path string, is func(info os.FileInfo, text string) bool) (bool, error) {
	to := q.in(path)
	if there, err := takeable(path, is); err != nil || !there {
		return false, err
	}
	if taken, err := take(path, to); err != nil || !taken {
		return false, err
	}
	same, err := takeable(to, is)
	if err != nil || same {
		return same, err
	}
	if _, occupied, err := giveBack(to, path); err != nil || !occupied {
		return false, err
	}
	return false, os.Remove(to) // a newer one is there
}

func takeable(path string, is func(info os.FileInfo, text string) bool) (bool, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && is(info, strings.TrimSpace(string(text))), err
}

// Hide takes the links to a blob that nothing names, so that pushes upload it again.
// hidden is false when a push or mount has linked it meanwhile.
func (q *Quarantine) Hide(o inventory.Orphan) (hidden bool, err error) {
	hidden = true
	for _, repository := range o.Repositories {
		taken, err := q.Link(repository, o.Digest, o.Changed)
		if err != nil {
			return false, err
		}
		hidden = hidden && taken
	}
	return hidden, nil
}

// Link takes a repository's link to a blob, unless it is newer than that.
func (q *Quarantine) Link(repository string, digest content.Digest, changed time.Time) (bool, error) {
	link := q.storage.link(repository, layersDir, digest)
	taken, err := q.takeIf(link, func(info os.FileInfo, _ string) bool { return !info.ModTime().After(changed) })
	if taken {
		tidy(filepath.Dir(link), q.storage.linksDir(repository, layersDir))
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
	return take(dir, q.in(dir))
}

// Upload takes an upload that was abandoned, unless it goes on.
func (q *Quarantine) Upload(repository string, u inventory.Upload) (bool, error) {
	is, err := q.storage.upload(repository, u.ID)
	if err != nil || is.Changed.After(u.Changed) {
		return false, err
	}
	dir := filepath.Join(q.storage.repositoryDir(repository), uploadsDir, u.ID)
	return take(dir, q.in(dir))
}

// Show puts back the links to a blob that Hide has taken.
func (q *Quarantine) Show(digest content.Digest, repositories []string) error {
	for _, repository := range repositories {
		link := q.storage.link(repository, layersDir, digest)
		if _, occupied, err := giveBack(q.in(link), link); err != nil {
			return err
		} else if occupied {
			_ = os.Remove(q.in(link)) // a newer one is there
		}
	}
	return nil
}

// Return puts back the bytes of a blob. Bytes that were uploaded anew stay, and the copy
// goes. It reports whether the blob is there now.
func (q *Quarantine) Return(digest content.Digest) (bool, error) {
	data := q.storage.data(digest)
	dir := filepath.Dir(data)
	given, occupied, err := giveBack(q.in(dir), dir)
	if err != nil || given {
		return given, err
	}
	if occupied { // by a push that has its bytes there, or is about to
		if _, _, err := giveBack(q.in(data), data); err != nil {
			return false, err
		}
		if err := os.RemoveAll(q.in(dir)); err != nil {
			return false, err
		}
	}
	return exists(data)
}

// Undo puts right a manifest that was taken by half: one that a tag leads to still comes
// back, and of a tag that is gone nothing is left.
func (q *Quarantine) Undo(e quarantine.Entry) error {
	for _, tag := range e.Tags {
		text, err := os.ReadFile(filepath.Join(q.storage.tagDir(e.Repository, tag), "current", "link"))
		switch {
		case errors.Is(err, fs.ErrNotExist):
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
	info, err := os.Lstat(q.storage.link(repository, revisionsDir, digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.ModTime().Equal(linked), err
}

// DropEmpty removes the directories of a repository in which nothing is but links to blobs
// that are older than a time, which go too: no manifest of it names them.
func (q *Quarantine) DropEmpty(repository string, before time.Time) error {
	s := q.storage
	hexes, err := names(s.linksDir(repository, layersDir))
	if err != nil {
		return err
	}
	for _, hex := range hexes {
		if isHex(hex) {
			if _, err := q.Link(repository, content.Digest(sha256+":"+hex), before); err != nil {
				return err
			}
		}
	}
	return dropEmptyDirs(s.repositoryDir(repository), s.path("repositories"))
}

// dropEmptyDirs removes what of a tree is empty, and then those above it.
func dropEmptyDirs(dir, last string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := dropEmptyDirs(filepath.Join(dir, e.Name()), filepath.Join(dir, e.Name())); err != nil {
				return err
			}
			_ = os.Remove(filepath.Join(dir, e.Name())) // if it is empty
		}
	}
	tidy(dir, last)
	return nil
}

// Holds reports whether what an entry names is in quarantine.
func (s *Storage) Holds(e quarantine.Entry) (bool, error) {
	return exists((&Quarantine{storage: s, run: e.Run}).in(s.place(e)))
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
	all, err := names(s.own("quarantine"))
	slices.Sort(all)
	return slices.DeleteFunc(all, func(name string) bool { return strings.HasPrefix(name, ".") }), err
}

// Purge removes what entries name for good.
func (s *Storage) Purge(entries []quarantine.Entry) error {
	for _, e := range entries {
		q := &Quarantine{storage: s, run: e.Run}
		if err := os.RemoveAll(q.in(s.place(e))); err != nil {
			return denied(err)
		}
		for _, repository := range e.Linked {
			if err := os.RemoveAll(q.in(s.link(repository, layersDir, content.Digest(e.Digest)))); err != nil {
				return denied(err)
			}
		}
	}
	return nil
}

// PurgeRuns removes the quarantines of runs for good.
func (s *Storage) PurgeRuns(ctx context.Context, runs []string) error {
	for _, run := range runs {
		// Out of sight first: what is half gone cannot be restored.
		if _, err := take(s.own("quarantine", run), s.own("quarantine", ".purge-"+run)); err != nil {
			return denied(err)
		}
		failpoint.Hit("janitor.outofsight")
	}
	all, err := names(s.own("quarantine"))
	if err != nil {
		return err
	}
	for _, name := range all {
		if !strings.HasPrefix(name, ".purge-") {
			continue
		}
		if err := removeAll(ctx, s.own("quarantine", name)); err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes a tree, its branches at once.
func removeAll(ctx context.Context, dir string) error {
	blobs := filepath.Join(dir, "tree", "blobs", sha256)
	prefixes, err := names(blobs)
	if err != nil {
		return err
	}
	err = inParallel(ctx, len(prefixes), func(i int) error { return os.RemoveAll(filepath.Join(blobs, prefixes[i])) })
	if err != nil {
		return denied(err)
	}
	return os.RemoveAll(dir)
}
