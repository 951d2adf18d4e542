package storage

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// repository reads one repository, if it has changed since the last look.
func (s *Storage) repository(ctx context.Context, name string, look inventory.Look) (looked, error) {
	if was, same, err := s.again(name, look); err != nil || same {
		return was, err
	}
	return s.readRepository(ctx, name, look)
}

func (s *Storage) readRepository(ctx context.Context, name string, look inventory.Look) (looked, error) {
	is := looked{Repository: inventory.Repository{Name: name}, created: look.Created, read: time.Now()}
	r := &is.Repository
	// Tags first: a push writes its revision before its tag, so that what a tag led to is
	// among the revisions that are listed then.
	tags, at, err := s.readTags(ctx, name)
	if err != nil {
		return is, err
	}
	is.tags = at
	layers, err := s.list(s.linksDir(name, layersDir))
	if err != nil {
		return is, err
	}
	dir := s.linksDir(name, revisionsDir)
	links, err := s.list(dir)
	if err != nil {
		return is, err
	}
	is.layers, is.links, is.revisions = layers.at, layers.hashes, links.at
	if is.aliases, is.layersTop, err = s.aliases(name); err != nil {
		return is, err
	}
	if r.Doubts, is.revisionsTop, err = s.strangers(name); err != nil {
		return is, err
	}
	if err := s.readRevisions(r, slices.SortedFunc(slices.Values(links.hashes), content.Sum.Compare), look); err != nil {
		return is, err
	}
	is.settle(is.read)
	is.deleted = len(links.hashes) > len(r.Manifests)+len(r.Doubts)
	if err := s.leadTags(r, tags); err != nil {
		return is, err
	}
	return is, s.uploadsOf(s.repositoryDir(name), r)
}

// readRevisions reads the manifests of a repository.
func (s *Storage) readRevisions(r *inventory.Repository, revisions []content.Sum, look inventory.Look) error {
	linked, err := s.linkedAt(s.linksDir(r.Name, revisionsDir), revisions)
	if err != nil {
		return err
	}
	r.Manifests = make([]inventory.Manifest, 0, len(revisions))
	return s.within(s.blobsDir(), func(blobs place) error {
		for i, h := range revisions {
			if linked[i].IsZero() {
				continue // deleted by the API, which leaves the directory
			}
			m, doubt, err := s.manifestIn(blobs, h)
			switch {
			case err != nil:
				return err
			case doubt != nil:
				doubt.Linked = linked[i]
				r.Doubts = append(r.Doubts, *doubt)
			default:
				one := inventory.Manifest{Manifest: m, Linked: linked[i], Pushed: linked[i]}
				if look.Created {
					if one.Created, err = s.created(r.Name, m); err != nil {
						return err
					}
				}
				r.Manifests = append(r.Manifests, one)
			}
		}
		return nil
	})
}

// linkedAt is when links were written; zero: they are not there.
func (s *Storage) linkedAt(dir string, links []content.Sum) ([]time.Time, error) {
	at := make([]time.Time, len(links))
	return at, s.within(dir, func(in place) error {
		for i, h := range links {
			is, err := in.stat(h.Hex() + "/link")
			if err != nil {
				return err
			}
			at[i] = is.modified
		}
		return nil
	})
}

// readTags reads the tags of a repository, by name. It says when one was last added or removed.
func (s *Storage) readTags(ctx context.Context, repository string) (tags []inventory.Tag, at time.Time, _ error) {
	dir := s.repositoryDir(repository) + "/" + tagsDir
	is, err := s.list(dir)
	if err != nil {
		return nil, at, err
	}
	list := is.all()
	slices.Sort(list)
	was := s.before(repository)
	if was == nil {
		was = &looked{}
	}
	before := was.read.Add(-s.files.settled())
	// A repository may have most tags of the registry.
	tags = make([]inventory.Tag, len(list))
	const part = 1000
	err = inParallel(ctx, (len(list)+part-1)/part, func(i int) error {
		from := i * part
		return s.readTagsOf(dir, list[from:min(from+part, len(list))], was.Tags, before, tags[from:])
	})
	return slices.DeleteFunc(tags, func(tag inventory.Tag) bool { return tag.Moved.IsZero() }), is.at, err // deleted meanwhile
}

// readTagsOf reads tags, whose names are in order, as are those that were read last; of these,
// one that was written before a time and not since is as it was.
func (s *Storage) readTagsOf(dir string, list []string, was []inventory.Tag, before time.Time, tags []inventory.Tag) (err error) {
	from, _ := slices.BinarySearchFunc(was, list[0], func(tag inventory.Tag, name string) int { return strings.Compare(tag.Name, name) })
	was = was[from:]
	return s.within(dir, func(in place) error {
		for i, name := range list {
			for len(was) > 0 && was[0].Name < name {
				was = was[1:]
			}
			var last *inventory.Tag
			if len(was) > 0 && was[0].Name == name && was[0].Moved.Before(before) {
				last = &was[0]
			}
			if tags[i], err = s.readTag(in, dir, name, last); err != nil {
				return err
			}
		}
		return nil
	})
}

// leadTags finds what tags lead to. A push of a tag is one of its manifest.
func (s *Storage) leadTags(r *inventory.Repository, tags []inventory.Tag) error {
	at := make(map[content.Digest]int, len(r.Manifests))
	for i := range r.Manifests {
		at[r.Manifests[i].Digest] = i
	}
	doubted := func(d content.Digest) bool {
		return slices.ContainsFunc(r.Doubts, func(doubt inventory.Doubt) bool { return doubt.Digest == d })
	}
	r.Tags = tags[:0]
	for _, tag := range tags {
		i, there := at[tag.Digest]
		switch {
		case tag.Digest == "": // what is left of one, or one that is being made
		case there:
			if tag.Moved.After(r.Manifests[i].Pushed) {
				r.Manifests[i].Pushed = tag.Moved
			}
		case doubted(tag.Digest):
		case strings.HasPrefix(string(tag.Digest), sha256+":"):
			linked, err := s.exists(s.link(r.Name, revisionsDir, tag.Digest))
			if err != nil {
				return err
			}
			if !linked { // else it was pushed meanwhile
				tag.Lost, tag.Digest = tag.Digest, ""
			}
		default:
			continue // of another algorithm
		}
		r.Tags = append(r.Tags, tag)
	}
	return nil
}

// readTag reads a tag; one that was not written since it was read last is not read again.
func (s *Storage) readTag(in place, dir, name string, last *inventory.Tag) (tag inventory.Tag, err error) {
	path := name + "/current/link"
	tag.Name = name
	link, err := in.stat(path)
	if err != nil {
		return tag, err
	}
	if tag.Moved = link.modified; !link.there {
		tag.Moved, err = s.left(dir + "/" + name)
		return tag, err
	}
	if last != nil && last.Moved.Equal(tag.Moved) {
		tag.Digest = cmp.Or(last.Digest, last.Lost)
		return tag, nil
	}
	err = in.with(path, maxLink, func(text []byte) bool {
		tag.Digest = content.Digest(strings.TrimSpace(string(text)))
		return isSHA256(tag.Digest) // a part of one is none
	})
	if errors.Is(err, errGone) {
		err = nil
	}
	return tag, err
}

// left is when what is left of a tag was last written.
func (s *Storage) left(dir string) (at time.Time, _ error) {
	is, err := s.stat(dir)
	if err != nil || !is.there {
		return at, err
	}
	at = is.modified
	entries := dir + "/index/" + sha256
	hexes, err := s.names(entries)
	for i := 0; i < len(hexes) && err == nil; i++ {
		var one time.Time
		if one, err = s.written(entries + "/" + hexes[i] + "/link"); one.After(at) {
			at = one
		}
	}
	return at, err
}

// maxLink bounds what a link may hold.
const maxLink = 1 << 10

// uploadsOf reads the uploads of a repository.
func (s *Storage) uploadsOf(dir string, r *inventory.Repository) error {
	ids, err := s.names(filepath.Join(dir, uploadsDir))
	if err != nil {
		return err
	}
	slices.Sort(ids)
	for _, id := range ids {
		u, err := s.upload(r.Name, id)
		if err != nil {
			return err
		}
		if !u.Changed.IsZero() { // else it has ended meanwhile
			r.Uploads = append(r.Uploads, u)
		}
	}
	return nil
}

// upload looks at an upload; its time is zero when it is gone.
func (s *Storage) upload(repository, id string) (inventory.Upload, error) {
	u := inventory.Upload{ID: id}
	dir := filepath.Join(s.repositoryDir(repository), uploadsDir, id)
	for _, file := range []string{".", "startedat", "data"} {
		is, err := s.stat(filepath.Join(dir, file))
		if err != nil {
			return u, err
		}
		if is.modified.After(u.Changed) {
			u.Changed = is.modified
		}
		if file == "data" {
			u.Bytes = is.size
		}
	}
	return u, nil
}

// maxManifest bounds a manifest: the registry takes none that is larger (distribution v3,
// registry/handlers/manifests.go).
const maxManifest = 4 << 20

// manifest is remembered or read. One that cannot be understood is a doubt, and then there is no
// manifest.
func (s *Storage) manifest(h content.Sum) (*content.Manifest, *inventory.Doubt, error) {
	return s.manifestIn(below{s, s.blobsDir()}, h)
}

func (s *Storage) manifestIn(blobs place, h content.Sum) (*content.Manifest, *inventory.Doubt, error) {
	if m, ok := s.known.get(h); ok {
		return m, nil, nil
	}
	digest := h.Digest()
	hex := hexOf(digest)
	var m *content.Manifest
	var doubt *inventory.Doubt
	err := blobs.with(hex[:2]+"/"+hex+"/data", maxManifest, func(raw []byte) bool {
		m, doubt = understand(digest, raw)
		return doubt == nil // a part of one is none
	})
	switch {
	case errors.Is(err, errGone):
		return nil, &inventory.Doubt{Digest: digest, Missing: true, Message: fmt.Sprintf("manifest %s is linked, and its bytes are not there", digest)}, nil
	case err == nil && doubt == nil:
		s.known.put(h, m)
	}
	return m, doubt, err
}

// understand reads the text of a manifest.
func understand(digest content.Digest, raw []byte) (*content.Manifest, *inventory.Doubt) {
	switch {
	case len(raw) == 0:
		return nil, &inventory.Doubt{Digest: digest, Message: fmt.Sprintf("manifest %s is empty", digest)}
	case len(raw) > maxManifest:
		return nil, &inventory.Doubt{Digest: digest, Bytes: int64(len(raw)), Message: fmt.Sprintf("manifest %s is too large to be one", digest)}
	}
	m, err := content.Parse(digest, "", raw)
	if err != nil {
		return nil, &inventory.Doubt{Digest: digest, Bytes: int64(len(raw)), Message: err.Error()}
	}
	return &m, nil
}

// blobsDir is where the blobs are.
func (s *Storage) blobsDir() string { return s.path("blobs", sha256) }

// data is the path of a blob's bytes.
func (s *Storage) data(digest content.Digest) string {
	algorithm, hex, _ := strings.Cut(string(digest), ":")
	return s.path("blobs", algorithm, hex[:2], hex, "data")
}

// created is when what a manifest is of was made, by its configuration. Zero: it does not
// say, or cannot be read.
func (s *Storage) created(repository string, m *content.Manifest) (at time.Time, _ error) {
	if !m.Configured {
		return at, nil
	}
	if at, ok := s.known.made(m.Config()); ok {
		return at, nil
	}
	digest, err := s.resolve(repository, m.Config())
	if err != nil || digest == "" {
		return at, err
	}
	raw, err := s.read(s.data(digest), maxManifest)
	var config struct {
		Created time.Time `json:"created"`
	}
	if err != nil || json.Unmarshal(raw, &config) != nil {
		return at, nil //nolint:nilerr // it does not say
	}
	s.known.putMade(m.Config(), config.Created)
	return config.Created, nil
}
