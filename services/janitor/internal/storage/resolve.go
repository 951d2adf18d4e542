package storage

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// The registry stores bytes by their sha256. What a repository knows by a digest of another
// algorithm has a link under that, whose text is the digest of sha256 (distribution v3,
// registry/storage/linkedblobstore.go, linkBlob).

// alias is a link of a repository by a digest of another algorithm.
type alias struct {
	digest content.Digest
	target content.Digest // empty: it says none
	linked time.Time
}

// resolve returns the digest by which the bytes are stored that a repository knows by a digest,
// also where the link that says it is in a quarantine. Empty: nothing says it.
func (s *Storage) resolve(repository string, d content.Digest) (content.Digest, error) {
	if isSHA256(d) {
		return d, nil
	}
	target, err := s.target(repository, d)
	if err != nil || target != "" {
		return target, err
	}
	runs, err := s.runs()
	if err != nil {
		return "", err
	}
	slices.Reverse(runs) // the last that took it
	for _, run := range runs {
		q := &Quarantine{storage: s, run: run}
		if target, err = s.linkText(q.in(s.link(repository, layersDir, d))); err != nil || target != "" {
			return target, err
		}
	}
	return "", nil
}

// target returns what the registry finds of a repository by a digest. Empty: it has no link.
func (s *Storage) target(repository string, d content.Digest) (content.Digest, error) {
	if isSHA256(d) {
		return d, nil
	}
	return s.linkText(s.link(repository, layersDir, d))
}

// linkText reads the digest in a link; empty when there is none.
func (s *Storage) linkText(path string) (content.Digest, error) {
	text, err := s.files.read(path, maxLink)
	if errors.Is(err, errGone) {
		return "", nil
	}
	d := content.Digest(strings.TrimSpace(string(text)))
	if err != nil || !d.Valid() {
		return "", err
	}
	return d, nil
}

// others are the names in a directory of links by algorithm, but for sha256, and when the
// directory was last changed.
func (s *Storage) others(repository, kind string) (algorithms []string, at time.Time, err error) {
	dir, err := s.list(s.repositoryDir(repository) + "/" + kind)
	return slices.DeleteFunc(slices.Clone(dir.names), func(name string) bool { return name == sha256 }), dir.at, err
}

// othersIn are the digests of other algorithms that a repository has links of.
func (s *Storage) othersIn(repository, kind string) (all []content.Digest, at time.Time, _ error) {
	algorithms, at, err := s.others(repository, kind)
	if err != nil {
		return nil, at, err
	}
	for _, algorithm := range algorithms {
		hexes, err := s.names(s.repositoryDir(repository) + "/" + kind + "/" + algorithm)
		if err != nil {
			return nil, at, err
		}
		for _, hex := range hexes {
			if d := content.Digest(algorithm + ":" + hex); d.Valid() {
				all = append(all, d)
			}
		}
	}
	slices.Sort(all)
	return all, at, nil
}

// aliases are the links to blobs of a repository by digests of other algorithms.
func (s *Storage) aliases(repository string) (all []alias, at time.Time, _ error) {
	digests, at, err := s.othersIn(repository, layersDir)
	if err != nil {
		return nil, at, err
	}
	for _, d := range digests {
		path := s.link(repository, layersDir, d)
		is, err := s.files.stat(path)
		if err != nil {
			return nil, at, err
		}
		if !is.there {
			continue
		}
		target, err := s.linkText(path)
		if err != nil {
			return nil, at, err
		}
		all = append(all, alias{d, target, is.modified})
	}
	return all, at, nil
}

// layerLinks are the digests of all links to blobs of a repository.
func (s *Storage) layerLinks(repository string) ([]content.Digest, error) {
	all, _, err := s.othersIn(repository, layersDir)
	if err != nil {
		return nil, err
	}
	hexes, err := s.names(s.linksDir(repository, layersDir))
	for _, hex := range hexes {
		if isHex(hex) {
			all = append(all, content.Digest(sha256+":"+hex))
		}
	}
	return all, err
}

// strangers are the revisions of a repository by digests of other algorithms. The registry makes
// none, and this janitor does not read them: what they name is not known.
func (s *Storage) strangers(repository string) (all []inventory.Doubt, at time.Time, _ error) {
	digests, at, err := s.othersIn(repository, revisionsDir)
	if err != nil {
		return nil, at, err
	}
	for _, d := range digests {
		is, err := s.stat(s.link(repository, revisionsDir, d))
		if err != nil {
			return nil, at, err
		}
		if is.there {
			all = append(all, inventory.Doubt{
				Digest: d, Bytes: max(1, is.size), Linked: is.modified,
				Message: "manifest " + string(d) + " is stored by a digest of an algorithm that is not read",
			})
		}
	}
	return all, at, nil
}
