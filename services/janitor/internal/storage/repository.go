package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// repository reads one repository.
func (s *Storage) repository(name string, look inventory.Look) (inventory.Repository, error) {
	r := inventory.Repository{Name: name}
	dir := s.repositoryDir(name)
	revisions, err := names(s.linksDir(name, revisionsDir))
	if err != nil {
		return r, err
	}
	slices.Sort(revisions)
	at := map[content.Digest]int{} // in r.Manifests
	doubted := map[content.Digest]bool{}
	for _, hex := range revisions {
		link, err := os.Lstat(filepath.Join(s.linksDir(name, revisionsDir), hex, "link"))
		if errors.Is(err, fs.ErrNotExist) || !isHex(hex) {
			continue // deleted by the API, which leaves the directory
		}
		if err != nil {
			return r, err
		}
		digest := content.Digest(sha256 + ":" + hex)
		m, doubt, err := s.manifest(digest)
		switch {
		case err != nil:
			return r, err
		case doubt != nil:
			doubted[digest], doubt.Linked = true, link.ModTime()
			r.Doubts = append(r.Doubts, *doubt)
		default:
			one := inventory.Manifest{Manifest: m, Linked: link.ModTime(), Pushed: link.ModTime()}
			if look.Created {
				one.Created = s.created(m)
			}
			at[digest] = len(r.Manifests)
			r.Manifests = append(r.Manifests, one)
		}
	}
	if err := s.tags(dir, &r, at, doubted); err != nil {
		return r, err
	}
	return r, s.uploadsOf(dir, &r)
}

// tags reads the tags of a repository. A push of a tag is one of its manifest.
func (s *Storage) tags(dir string, r *inventory.Repository, at map[content.Digest]int, doubted map[content.Digest]bool) error {
	tags, err := names(filepath.Join(dir, manifestsDir, "tags"))
	if err != nil {
		return err
	}
	slices.Sort(tags)
	for _, name := range tags {
		path := filepath.Join(dir, manifestsDir, "tags", name, "current", "link")
		link, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile, or being made
		}
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		tag := inventory.Tag{Name: name, Digest: content.Digest(strings.TrimSpace(string(link))), Moved: info.ModTime()}
		i, there := at[tag.Digest]
		switch {
		case there:
			if tag.Moved.After(r.Manifests[i].Pushed) {
				r.Manifests[i].Pushed = tag.Moved
			}
		case doubted[tag.Digest]:
		case strings.HasPrefix(string(tag.Digest), sha256+":"):
			tag.Lost, tag.Digest = tag.Digest, ""
		default:
			continue // of another algorithm
		}
		r.Tags = append(r.Tags, tag)
	}
	return nil
}

// uploadsOf reads the uploads of a repository.
func (s *Storage) uploadsOf(dir string, r *inventory.Repository) error {
	ids, err := names(filepath.Join(dir, uploadsDir))
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
		info, err := os.Lstat(filepath.Join(dir, file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return u, err
		}
		if info.ModTime().After(u.Changed) {
			u.Changed = info.ModTime()
		}
		if file == "data" {
			u.Bytes = info.Size()
		}
	}
	return u, nil
}

// maxManifest bounds a manifest: the registry takes none that is larger (distribution v3,
// registry/handlers/manifests.go).
const maxManifest = 4 << 20

// manifest is remembered or read. One that cannot be understood is a doubt.
func (s *Storage) manifest(digest content.Digest) (content.Manifest, *inventory.Doubt, error) {
	if m, ok := s.known.get(digest); ok {
		return m, nil, nil
	}
	path := s.data(digest)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return content.Manifest{}, &inventory.Doubt{Digest: digest, Missing: true, Message: fmt.Sprintf("manifest %s is linked, and its bytes are not there", digest)}, nil
	case err != nil:
		return content.Manifest{}, nil, err
	case info.Size() == 0:
		return content.Manifest{}, &inventory.Doubt{Digest: digest, Message: fmt.Sprintf("manifest %s is empty", digest)}, nil
	case info.Size() > maxManifest:
		return content.Manifest{}, &inventory.Doubt{Digest: digest, Bytes: info.Size(), Message: fmt.Sprintf("manifest %s is too large to be one", digest)}, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return content.Manifest{}, nil, err
	}
	m, err := content.Parse(digest, "", raw)
	if err != nil {
		return content.Manifest{}, &inventory.Doubt{Digest: digest, Bytes: max(int64(len(raw)), 1), Message: err.Error()}, nil //nolint:nilerr // it is told
	}
	s.known.put(digest, m)
	return m, nil, nil
}

// data is the path of a blob's bytes.
func (s *Storage) data(digest content.Digest) string {
	algorithm, hex, _ := strings.Cut(string(digest), ":")
	return s.path("blobs", algorithm, hex[:2], hex, "data")
}

// created is when what a manifest is of was made, by its configuration. Zero: it does not
// say, or cannot be read.
func (s *Storage) created(m content.Manifest) time.Time {
	if m.Config == "" {
		return time.Time{}
	}
	if at, ok := s.known.made(m.Config); ok {
		return at
	}
	raw, err := os.ReadFile(s.data(m.Config))
	var config struct {
		Created time.Time `json:"created"`
	}
	if err != nil || json.Unmarshal(raw, &config) != nil {
		return time.Time{}
	}
	s.known.putMade(m.Config, config.Created)
	return config.Created
}
