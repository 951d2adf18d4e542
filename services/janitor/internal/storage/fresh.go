package storage

import (
	"slices"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// Fresh returns what manifests of a repository name now that are not among the known ones: a push
// may name what a plan has go, for it was there when the client asked.
func (s *Storage) Fresh(repository string, known func(content.Sum) bool) (inventory.Fresh, error) {
	out := inventory.Fresh{Names: map[content.Digest]content.Digest{}}
	strangers, _, err := s.strangers(repository)
	if err != nil {
		return out, err
	}
	for _, d := range strangers {
		out.Unread = d.Message
	}
	revisions, err := s.files.list(s.linksDir(repository, revisionsDir))
	if err != nil {
		return out, err
	}
	for _, h := range revisions.hashes {
		if known(h) {
			continue
		}
		linked, err := s.exists(s.link(repository, revisionsDir, h.Digest()))
		if err != nil {
			return out, err
		}
		if !linked {
			continue
		}
		m, doubt, err := s.manifest(h)
		switch {
		case err != nil:
			return out, err
		case doubt != nil && doubt.Bytes > 0:
			out.Unread = doubt.Message
			continue
		case doubt != nil:
			continue
		}
		if err := s.noteFresh(repository, m, &out); err != nil {
			return out, err
		}
	}
	return out, nil
}

// noteFresh notes what a manifest names, and itself: it may be one that went and was pushed again.
func (s *Storage) noteFresh(repository string, m *content.Manifest, out *inventory.Fresh) error {
	out.Names[m.Digest] = m.Digest
	if m.Subject != "" {
		out.Names[m.Subject] = m.Digest
	}
	for d := range reaches(m) {
		stored, err := s.resolve(repository, d)
		if err != nil {
			return err
		}
		if stored == "" {
			out.Unread = "manifest " + string(m.Digest) + " names " + string(d) + ", which no link of the repository resolves"
			continue
		}
		for _, name := range slices.Compact([]content.Digest{stored, d}) {
			out.Names[name] = m.Digest
		}
	}
	return nil
}
