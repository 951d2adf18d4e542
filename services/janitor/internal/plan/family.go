package plan

import (
	"cmp"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// signatureTag is the tag of cosign's signatures, attestations and SBOMs of the manifest of
// a digest (cosign, "Signature Specification"), and that of a list of referrers (OCI
// distribution specification, "Referrers Tag Schema").
var signatureTag = regexp.MustCompile(`^sha256-([a-f0-9]{64})(\.(?:sig|att|sbom))?$`)

// signed is the digest of the manifest that a tag of n is about; empty when the tag is one of
// its own life. The form without a suffix is one that people also give to images: there it
// counts for indexes only.
func signed(tag string, n *node) content.Digest {
	if !strings.HasPrefix(tag, "sha256-") { // as nearly all
		return ""
	}
	m := signatureTag.FindStringSubmatch(tag)
	if m == nil || m[2] == "" && n.manifest.Of != content.Index {
		return ""
	}
	subject := content.Digest("sha256:" + m[1])
	if subject == n.manifest.Digest {
		return ""
	}
	return subject
}

// SubjectOf is what a tag says that a manifest is about, if it is a signature's; else empty.
func SubjectOf(tag inventory.Tag, of content.Kind) content.Digest {
	return signed(tag.Name, &node{manifest: &inventory.Manifest{Manifest: &content.Manifest{Digest: tag.Digest, Of: of}}})
}

// family is the manifests of one repository, by digest, and which live and die with which.
type family struct {
	nodes []*node
}

// of is the node of a digest, or nil. A map of them takes longer to make than all lookups.
func (f *family) of(d content.Digest) *node {
	if i, is := slices.BinarySearchFunc(f.nodes, d, (*node).compare); is {
		return f.nodes[i]
	}
	return nil
}

// own notes that a manifest lives and dies with another.
func (f *family) own(owner, n *node) {
	if owner != nil && n != nil && owner != n && !slices.Contains(n.owners, owner) {
		n.owners, owner.dependents = append(n.owners, owner), append(owner.dependents, n)
	}
}

// part notes that a manifest names another.
func (f *family) part(whole, n *node) {
	f.own(whole, n)
	if n != nil && whole != n && !slices.Contains(n.wholes, whole) {
		n.wholes = append(n.wholes, whole)
	}
}

// below reports whether a manifest lives and dies with another, directly or not.
func (n *node) below(other *node) bool {
	seen := map[*node]bool{}
	next := []*node{n}
	for len(next) > 0 {
		one := next[0]
		next = next[1:]
		for _, o := range one.owners {
			if o == other {
				return true
			}
			if !seen[o] {
				seen[o] = true
				next = append(next, o)
			}
		}
	}
	return false
}

// family makes the nodes of one repository, whose verdicts are from a place on.
func (s *simulation) family(r *inventory.Repository, from int) *family {
	f := &family{nodes: make([]*node, 0, len(r.Manifests))}
	all := make([]node, len(r.Manifests))
	names := r.Names()
	for i := range r.Manifests {
		m, n := &r.Manifests[i], &all[i]
		*n = node{
			repository: r.Name, names: names, manifest: m, at: from + i, verdict: &s.verdicts[from+i],
			pushed: m.Pushed, used: m.Pushed, reaches: r.Reaches[i],
		}
		*n.verdict = Verdict{
			Repository: r.Name, Kind: Manifest, Digest: string(m.Digest), Of: m.Of, Bytes: m.Bytes, Pushed: m.Pushed, Reason: NoRule,
		}
		if n.seen = !Timed(m.Pushed); n.seen {
			n.pushed, n.used = time.Time{}, time.Time{}
		}
		f.nodes = append(f.nodes, n)
	}
	// So that the order of the input is without effect.
	inOrder(f.nodes, func(a, b *node) int { return a.compare(b.manifest.Digest) })
	f.link()
	f.tag(r.Tags)
	return f
}

// link finds out which manifests belong to which. Whatever a manifest names by a digest that is
// that of another manifest is a part of it, of whichever media type the reference says that it
// is: the registry checks no more when it takes an index.
func (f *family) link() {
	numbers := make(map[int32]*node, len(f.nodes))
	for _, n := range f.nodes {
		if id := n.reaches[0]; id != inventory.Missing {
			numbers[id] = n
		}
	}
	for _, n := range f.nodes {
		for _, child := range n.manifest.Children {
			f.part(n, f.of(child))
		}
		for _, id := range n.reaches[1:] {
			if other := numbers[id]; other != nil {
				f.part(n, other)
			}
		}
		if n.manifest.Subject != "" {
			f.own(f.of(n.manifest.Subject), n)
		}
	}
}

// tag gives the manifests their tags. A signature's tag says what it is about, and is no life of
// its own; one that would make two manifests live by each other says nothing.
func (f *family) tag(tags []inventory.Tag) {
	byName := func(a, b inventory.Tag) int { return cmp.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(tags, byName) {
		tags = slices.SortedFunc(slices.Values(tags), byName)
	}
	for _, tag := range tags {
		n := f.of(tag.Digest)
		if n == nil {
			continue
		}
		n.verdict.Tags = append(n.verdict.Tags, tag.Name)
		subject := signed(tag.Name, n)
		if subject == "" {
			n.tags = append(n.tags, tag.Name)
			continue
		}
		switch owner := f.of(subject); {
		case owner == nil:
			n.signs = subject
		case !owner.below(n):
			f.own(owner, n)
		}
	}
}

// freeze keeps what a manifest that is not understood may name: all that has no tag of its own.
// Nothing goes of a repository whose files are not below those of the registry.
func (f *family) freeze(r *inventory.Repository) {
	doubts := inDoubt(r)
	for _, n := range f.nodes {
		subject := n.manifest.Subject
		_, known := subject.Sum()
		switch {
		case r.Elsewhere != "":
			n.held = hold{Doubt, "", elsewhere(r)}
		case isDoubt(r, subject), isDoubt(r, n.signs):
			of := string(cmp.Or(n.signs, subject))
			n.held = hold{Parent, of, "it is about " + of + ", which cannot be read and stays"}
		case len(n.tags) > 0:
		case len(doubts) > 0:
			n.held = hold{Doubt, "", "it may be named by a manifest of its repository that is not understood: " + doubts[0]}
		case strings.Contains(string(subject), ":") && !known:
			n.held = hold{Doubt, "", "its subject " + string(subject) + " is of an algorithm by which no manifest is stored: whether that lives is not known"}
		}
	}
}

// isDoubt reports whether a manifest of a repository cannot be read.
func isDoubt(r *inventory.Repository, d content.Digest) bool {
	return d != "" && slices.ContainsFunc(r.Doubts, func(one inventory.Doubt) bool { return one.Digest == d && one.Bytes > 0 })
}

func elsewhere(r *inventory.Repository) string {
	return "the files of " + r.Name + " are not in the registry's storage but at " + r.Elsewhere + ", and cannot be moved to quarantine: nothing of it goes"
}

// inDoubt says of which manifests of a repository it is not known what they name. None: it is known
// of all.
func inDoubt(r *inventory.Repository) (why []string) {
	for _, d := range r.Doubts {
		if d.Bytes > 0 {
			why = append(why, d.Message)
		}
	}
	for _, l := range r.Unresolved {
		why = append(why, fmt.Sprintf("manifest %s names %s, which no link of the repository resolves", l.Manifest, l.Digest))
	}
	return why
}

// holdSignatures keeps signatures whose subject lives in another repository, as cosign keeps
// them where COSIGN_REPOSITORY says.
func (s *simulation) holdSignatures() {
	lives := map[content.Digest]string{}
	for _, n := range s.nodes {
		if n.signs != "" {
			lives[n.signs] = ""
		}
	}
	if len(lives) == 0 {
		return
	}
	for _, n := range s.nodes {
		if name, wanted := lives[n.manifest.Digest]; wanted && name == "" {
			lives[n.manifest.Digest] = n.repository
		}
	}
	for _, r := range s.in.Registry.Repositories {
		for d := range unreadIn(&r) {
			if name, wanted := lives[d]; wanted && name == "" {
				lives[d] = r.Name
			}
		}
	}
	for _, n := range s.nodes {
		switch name := lives[n.signs]; {
		case n.signs == "" || n.pinned():
		case name != "":
			n.held = hold{Parent, string(n.signs), "it is about " + string(n.signs) + ", which is in " + name}
		case len(s.in.Registry.Unread) > 0:
			n.held = hold{Doubt, "", "it is about " + string(n.signs) + ", which may be in " + s.in.Registry.Unread[0] + ": that could not be read"}
		}
	}
}

// unreadIn are the manifests of a repository that are there, or may be, and were not read.
func unreadIn(r *inventory.Repository) iter.Seq[content.Digest] {
	return func(yield func(content.Digest) bool) {
		for _, d := range r.Doubts {
			if d.Bytes > 0 && !yield(d.Digest) {
				return
			}
		}
		for _, d := range r.Beside {
			if !yield(d) {
				return
			}
		}
	}
}
