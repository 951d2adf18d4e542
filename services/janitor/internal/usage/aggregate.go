// Package usage finds out what a registry holds.
package usage

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// Repository is what was found in one repository.
type Repository struct {
	Name      string
	Tags      []Tag // in alphabetical order
	Manifests map[content.Digest]content.Manifest
	Broken    int // manifests that are missing or cannot be read
	// Unread is why something of it could not be read that the registry does not say to be absent.
	// What that names is not known.
	Unread error
	Err    error // why it could not be looked at; then the rest is empty
}

// Tag is a tag and the manifest that it holds.
type Tag struct {
	Name   string
	Digest content.Digest // empty: it leads nowhere
}

// Snapshot is what a registry held at one time.
type Snapshot struct {
	Time         time.Time
	Total        Totals
	Repositories []RepositoryUsage // the largest first, then by name
	Storage      *Storage          // nil: out of reach
}

// Totals are figures of the whole registry.
type Totals struct {
	Repositories      int64
	Failed            int64 // of these, those that could not be looked at
	Tags              int64
	Manifests         int64 // each counted once in each repository
	Blobs             int64 // manifests included, each counted once
	DeduplicatedBytes int64
	SumOwnBytes       int64
}

// RepositoryUsage is what one repository holds: what its tags reach.
type RepositoryUsage struct {
	Name           string
	Err            error
	Manifests      int64
	Blobs          int64 // manifests included
	OwnBytes       int64
	SharedBytes    int64 // of OwnBytes, what other repositories reach too
	Broken         int64
	Tags           int64
	TagUsages      []TagUsage // in alphabetical order, at most maxTagUsages
	ExclusiveBytes int64      // of OwnBytes, what no other repository reaches
}

// TagUsage is what one tag holds.
type TagUsage struct {
	Tag
	OwnBytes       int64
	ExclusiveBytes int64 // of OwnBytes, what no other tag of the registry reaches
}

// reach is a set of blobs, manifests included, with their bytes.
type reach map[content.Digest]int64

func (r reach) bytes() (sum int64) {
	for _, n := range r {
		sum += n
	}
	return sum
}

// closure is all that a tag reaches. It is made anew each time, since those of all
// tags together would be large.
func (r Repository) closure(tag Tag) reach {
	closure := reach{}
	closure.addClosure(r.Manifests, tag.Digest)
	return closure
}

// addClosure adds all that a manifest reaches, itself included.
func (r reach) addClosure(manifests map[content.Digest]content.Manifest, digest content.Digest) {
	m, known := manifests[digest]
	if _, done := r[digest]; done || !known {
		return
	}
	r[digest] = m.Bytes
	for _, b := range m.Blobs {
		r[b.Digest()] = b.Bytes
	}
	for _, child := range m.Children {
		r.addClosure(manifests, child)
	}
}

// Aggregate adds up what was found. Reached is all that any tag reaches.
func Aggregate(found []Repository) (s Snapshot, reached map[content.Digest]int64) {
	all := reach{}
	reaches := make([]reach, len(found))       // of each repository
	repositoriesOf := map[content.Digest]int{} // how many repositories reach it
	tagsOf := map[content.Digest]int{}         // how many tags reach it
	for i, repository := range found {
		reaches[i] = reach{}
		for _, tag := range repository.Tags {
			for digest, bytes := range repository.closure(tag) {
				reaches[i][digest] = bytes
				all[digest] = bytes
				tagsOf[digest]++
			}
		}
		for digest := range reaches[i] {
			repositoriesOf[digest]++
		}
	}
	for i, repository := range found {
		usage := repositoryUsage(repository, reaches[i], repositoriesOf)
		usage.TagUsages = tagUsages(repository, tagsOf)
		s.Repositories = append(s.Repositories, usage)
		s.Total.add(usage)
	}
	s.Total.Blobs, s.Total.DeduplicatedBytes = int64(len(all)), all.bytes()
	slices.SortFunc(s.Repositories, func(a, b RepositoryUsage) int {
		return cmp.Or(cmp.Compare(b.OwnBytes, a.OwnBytes), strings.Compare(a.Name, b.Name))
	})
	return s, all
}

func repositoryUsage(r Repository, reached reach, repositoriesOf map[content.Digest]int) RepositoryUsage {
	usage := RepositoryUsage{
		Name: r.Name, Err: r.Err, Tags: int64(len(r.Tags)), Broken: int64(r.Broken),
		Blobs: int64(len(reached)), OwnBytes: reached.bytes(),
	}
	for digest, bytes := range reached {
		if _, isManifest := r.Manifests[digest]; isManifest {
			usage.Manifests++
		}
		if repositoriesOf[digest] > 1 {
			usage.SharedBytes += bytes
		}
	}
	usage.ExclusiveBytes = usage.OwnBytes - usage.SharedBytes
	return usage
}

// maxTagUsages bounds the tags of one repository that figures are kept of.
const maxTagUsages = 1000

func tagUsages(r Repository, tagsOf map[content.Digest]int) []TagUsage {
	usages := make([]TagUsage, 0, min(len(r.Tags), maxTagUsages))
	for _, tag := range r.Tags[:min(len(r.Tags), maxTagUsages)] {
		usage := TagUsage{Tag: tag}
		for digest, bytes := range r.closure(tag) {
			usage.OwnBytes += bytes
			if tagsOf[digest] == 1 {
				usage.ExclusiveBytes += bytes
			}
		}
		usages = append(usages, usage)
	}
	return usages
}

func (t *Totals) add(r RepositoryUsage) {
	t.Repositories++
	if r.Err != nil {
		t.Failed++
	}
	t.Tags += r.Tags
	t.Manifests += r.Manifests
	t.SumOwnBytes += r.OwnBytes
}
