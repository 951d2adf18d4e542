// Package inventory is what a registry holds, as it is stored: the manifests and tags of
// each repository, and what nothing reaches.
package inventory

import (
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// Look says how to look at the storage.
type Look struct {
	// Created asks when what manifests are of was made, which takes to read their
	// configurations.
	Created bool
	// Removed are manifests that runs have removed: what they name is told from other
	// orphans.
	Removed []Removed
	// Ahead is a look for a plan, which another look follows before anything goes.
	Ahead bool
}

// Registry is what a registry held at one time.
type Registry struct {
	Time         time.Time    // by the janitor's clock, taken before it was looked at
	Repositories []Repository // by name
	Orphans      []Orphan     // in any order
	Bytes        []int64      // of what Reaches number; none: they are not numbered
	Took         Took
	Warnings     []string // what could not be looked at, in sentences
	// Unread are repositories that could not be read: what they hold is not known.
	Unread []string
}

// Took is where the time of a look went.
type Took struct{ Walk, Parse, Links time.Duration }

// Repository is one repository.
type Repository struct {
	Name string
	// Aliases are other names of it: links to its directory, or to one above it.
	Aliases []string
	// Elsewhere is where its files are when they are not below the registry's root, but behind a
	// link. Empty: they are. Nothing of it can be moved to quarantine.
	Elsewhere string
	Manifests []Manifest // by digest
	Tags      []Tag      // by name
	Uploads   []Upload   // by id
	// Doubts are manifests that are there and cannot be read: what they reach is not
	// known.
	Doubts []Doubt
	// Beside are subjects of signatures that are there, or may be, and were not read.
	Beside []content.Digest
	// Dangling are links to blobs that are not there.
	Dangling []Link
	// Unnamed are links to blobs that no manifest of the repository names, though another's may.
	Unnamed []Link
	// Resolved are the digests of sha256 of what its manifests name by those of other algorithms,
	// and Unresolved what no link of it resolves: it is not known what that is.
	Resolved   map[content.Digest]content.Digest
	Unresolved []Lack
	// Reaches are what each manifest takes by the numbers of these, the same in all
	// repositories: itself, and then the blobs that it names. To look each up by its digest
	// would be most of the work on a large registry.
	Reaches [][]int32
}

// Names are all names of it, its own first.
func (r *Repository) Names() []string { return append([]string{r.Name}, r.Aliases...) }

// Manifest is a manifest of a repository.
type Manifest struct {
	*content.Manifest           // which is remembered, and not changed
	Linked            time.Time // when its revision was last written
	Pushed            time.Time // when its revision or a tag of it was last written
	// Created is when what it is of was made, by its configuration. Zero: not known.
	Created time.Time
}

// Tag is a tag and the manifest that it holds.
type Tag struct {
	Name   string
	Digest content.Digest // empty: it leads nowhere
	Lost   content.Digest // that it leads to, and is not there
	Moved  time.Time      // when it was last written
}

// Upload is one that has not ended.
type Upload struct {
	ID      string
	Bytes   int64
	Changed time.Time
}

// Doubt is a manifest that cannot be read.
type Doubt struct {
	Digest  content.Digest
	Bytes   int64 // 0: it is empty, and reaches nothing
	Missing bool  // its revision is there, and its bytes are not
	Linked  time.Time
	Message string
}

// Orphan is a blob that no manifest reaches.
type Orphan struct {
	Digest content.Digest
	Bytes  int64
	// Changed is when it, or a link to it of any repository, was last written.
	Changed time.Time
	// Repositories are those that have a link to it, sorted.
	Repositories []string
	// Aliases are links to it by digests of other algorithms, as "repository@digest", sorted.
	Aliases []string
	// Removed is when the last manifest that named it was removed by a run. Zero: not
	// known of.
	Removed time.Time
}

// Link notes that a repository has a link to it by a digest, which was last written at a time.
func (o *Orphan) Link(repository string, digest content.Digest, at time.Time) {
	if digest == o.Digest {
		o.Repositories = append(o.Repositories, repository)
	} else {
		o.Aliases = append(o.Aliases, repository+"@"+string(digest))
	}
	if at.After(o.Changed) {
		o.Changed = at
	}
}

// Links are all links to it: names of repositories, and aliases.
func (o *Orphan) Links() []string { return slices.Concat(o.Repositories, o.Aliases) }

// In are the repositories that have links to it by any digest, sorted.
func (o *Orphan) In() []string {
	all := slices.Clone(o.Repositories)
	for _, alias := range o.Aliases {
		repository, _, _ := strings.Cut(alias, "@")
		all = append(all, repository)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Names are all names of the repositories of In, by the aliases of a registry.
func (o *Orphan) Names(aliases map[string][]string) []string {
	all := o.In()
	for _, name := range all {
		all = append(all, aliases[name]...)
	}
	return all
}

// Aliases are the other names of repositories that have some.
func (r *Registry) Aliases() map[string][]string {
	all := map[string][]string{}
	for _, of := range r.Repositories {
		if len(of.Aliases) > 0 {
			all[of.Name] = of.Aliases
		}
	}
	return all
}

// Link is a link of a repository to a blob.
type Link struct {
	Digest content.Digest
	Linked time.Time
	// Removed is when the last manifest that named the blob was removed by a run. Zero: not known
	// of.
	Removed time.Time
}

// Removed is a manifest that a run has removed, and whose bytes are there still.
type Removed struct {
	Repository string
	Digest     content.Digest
	At         time.Time
}

// Fresh is what manifests name that came since a repository was read.
type Fresh struct {
	// Names says by which of them each digest is named. Each names itself.
	Names map[content.Digest]content.Digest
	// Unread says that one of them cannot be read: it may name anything. Empty: all can.
	Unread string
}

// Lack is something that a manifest names and that is not there.
type Lack struct {
	Repository string
	Manifest   content.Digest // that names it
	Digest     content.Digest
	Child      bool // a manifest of an index; else a blob
}
