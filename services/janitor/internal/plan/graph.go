package plan

import (
	"cmp"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// simulation is the state of a registry while a policy is applied.
type simulation struct {
	in       Input
	nodes    []*node   // of one repository after the other, by name and digest
	order    []*node   // that go, in the order of their going
	verdicts []Verdict // of the nodes
	refused  []string  // bounds that keep more than they say, in sentences
}

// node is a manifest of a repository.
type node struct {
	repository string
	manifest   *inventory.Manifest
	tags       []string // that make it live by itself
	owners     []*node  // indexes that list it, and its subject
	dependents []*node
	rule       *policy.Rule // the first that matches; nil: none
	verdict    *Verdict     // among those of the simulation,
	at         int          // there
	pushed     time.Time    // last push that is known of
	used       time.Time    // last push or pull, of it or of a child
	reaches    []int32      // numbers of what it takes: itself and the blobs that it names
	lease      string       // id; empty: none
	seen       bool         // the storage does not tell when it was pushed: at the latest when it was seen first
	gone       bool
	decided    bool // by its own rule, of a root
}

// compare compares its digest.
func (n *node) compare(d content.Digest) int {
	return strings.Compare(string(n.manifest.Digest), string(d))
}

// root reports whether its own rule decides on it: nothing owns it, or it has a tag.
func (n *node) root() bool { return len(n.owners) == 0 || len(n.tags) > 0 }

// signatureTag is the tag of cosign's signatures, attestations and SBOMs of the manifest of
// a digest (cosign, "Signature Specification").
var signatureTag = regexp.MustCompile(`^sha256-([a-f0-9]{64})(?:\.(?:sig|att|sbom))?$`)

// signed is the match of a signature's tag.
func signed(tag string) []string {
	if !strings.HasPrefix(tag, "sha256-") { // as nearly all
		return nil
	}
	return signatureTag.FindStringSubmatch(tag)
}

// inOrder sorts what is in order most of the time.
func inOrder[T any](all []T, compare func(a, b T) int) {
	if !slices.IsSortedFunc(all, compare) {
		slices.SortFunc(all, compare)
	}
}

func newSimulation(in Input) *simulation {
	s := &simulation{in: in}
	s.in.Registry.Repositories = slices.Clone(in.Registry.Repositories)
	s.in.Registry.Number()
	inOrder(s.in.Registry.Repositories, func(a, b inventory.Repository) int { return cmp.Compare(a.Name, b.Name) })
	nodes := make([][]*node, len(s.in.Registry.Repositories))
	from, count := make([]int, len(nodes)), 0 // of verdicts
	for i := range nodes {
		from[i] = count
		count += len(s.in.Registry.Repositories[i].Manifests)
	}
	s.verdicts = make([]Verdict, count, count+countOddities(in.Registry))
	inParallel(len(nodes), func(i int) { nodes[i] = s.nodesOf(&s.in.Registry.Repositories[i], from[i]) })
	s.nodes = slices.Concat(nodes...)
	return s
}

// inParallel does something n times, as many at once as there are processors.
func inParallel(n int, do func(i int)) {
	var next atomic.Int64
	var group sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	group.Wait()
}

// nodesOf are those of one repository, each with its rule, and its verdict from a place on.
func (s *simulation) nodesOf(r *inventory.Repository, from int) []*node {
	nodes := s.family(r, from)
	for _, n := range nodes {
		n.rule = s.ruleOf(n)
		n.settle(s.in)
		if n.rule != nil {
			n.verdict.Rule = n.rule.Name
		}
	}
	return nodes
}

// family are the manifests of one repository, and which live and die with which.
func (s *simulation) family(r *inventory.Repository, from int) []*node {
	nodes := make([]*node, 0, len(r.Manifests))
	all := make([]node, len(r.Manifests))
	for i := range r.Manifests {
		m, n := &r.Manifests[i], &all[i]
		*n = node{repository: r.Name, manifest: m, at: from + i, verdict: &s.verdicts[from+i], pushed: m.Pushed, used: m.Pushed, reaches: r.Reaches[i]}
		*n.verdict = Verdict{Repository: r.Name, Kind: Manifest, Digest: string(m.Digest), Of: m.Of, Bytes: m.Bytes, Pushed: m.Pushed, Reason: NoRule}
		nodes = append(nodes, n)
	}
	// So that the order of the input is without effect.
	inOrder(nodes, func(a, b *node) int { return a.compare(b.manifest.Digest) })
	of := func(d content.Digest) *node { // a map of them takes longer to make than all lookups
		if i, is := slices.BinarySearchFunc(nodes, d, (*node).compare); is {
			return nodes[i]
		}
		return nil
	}
	own := func(owner, n *node) {
		if owner != nil && n != nil && owner != n && !slices.Contains(n.owners, owner) {
			n.owners, owner.dependents = append(n.owners, owner), append(owner.dependents, n)
		}
	}
	for _, n := range nodes {
		if n.seen = !Timed(n.manifest.Pushed); n.seen {
			n.pushed, n.used = time.Time{}, time.Time{}
		}
		for _, child := range n.manifest.Children {
			own(n, of(child))
		}
		if n.manifest.Subject != "" {
			own(of(n.manifest.Subject), n)
		}
	}
	tags := r.Tags
	if byName := func(a, b inventory.Tag) int { return cmp.Compare(a.Name, b.Name) }; !slices.IsSortedFunc(tags, byName) {
		tags = slices.SortedFunc(slices.Values(tags), byName)
	}
	for _, tag := range tags {
		n := of(tag.Digest)
		if n == nil {
			continue
		}
		n.verdict.Tags = append(n.verdict.Tags, tag.Name)
		if m := signed(tag.Name); m != nil && of(content.Digest("sha256:"+m[1])) != nil {
			own(of(content.Digest("sha256:"+m[1])), n) // the tag says what it is of, and is no life of its own
			continue
		}
		n.tags = append(n.tags, tag.Name)
	}
	for _, n := range nodes {
		n.use(s.in)
	}
	for _, n := range nodes {
		for _, child := range n.manifest.Children { // to use a part is to use the whole
			if part := of(child); part != nil && part.used.After(n.used) {
				n.used = part.used
			}
		}
	}
	return nodes
}

// use takes in what is known of its uses and leases.
func (n *node) use(in Input) {
	if in.Uses != nil {
		pushed, pulled := in.Uses.Last(n.repository, n.manifest.Digest, n.verdict.Tags)
		n.verdict.Pulled = pulled
		if pushed.After(n.pushed) {
			n.pushed = pushed
		}
		for _, at := range []time.Time{pushed, pulled} {
			if at.After(n.used) {
				n.used = at
			}
		}
	}
	if in.Leases != nil {
		n.lease = in.Leases.Lease(n.repository, n.manifest.Digest, n.verdict.Tags)
	}
}

// settle says how long it was unused, without the time that nobody listened.
func (n *node) settle(in Input) {
	n.verdict.Age = in.age(n.used)
	if in.Uses != nil {
		n.verdict.Age = max(0, n.verdict.Age-in.Uses.Away(n.used))
	}
	for _, o := range n.owners {
		n.verdict.Owners = append(n.verdict.Owners, o.manifest.Digest)
	}
}

// ruleOf is the first rule that matches a manifest.
func (s *simulation) ruleOf(n *node) *policy.Rule {
	for i := range s.in.Policy.Rules {
		if r := &s.in.Policy.Rules[i]; r.Fits(n.repository, n.manifest.Digest, n.tags, n.manifest.Of) {
			return r
		}
	}
	return nil
}

// holders counts by how many manifests each blob is held.
type holders struct {
	bytes []int64 // of each
	by    []int32
	held  int64 // blobs
}

func (s *simulation) holders() *holders {
	return &holders{bytes: s.in.Registry.Bytes, by: make([]int32, len(s.in.Registry.Bytes))}
}

func (h *holders) add(n *node) (bytes int64) {
	for _, id := range n.reaches {
		if id == inventory.Missing {
			continue
		}
		if h.by[id]++; h.by[id] == 1 {
			bytes += h.bytes[id]
			h.held++
		}
	}
	return bytes
}

func (h *holders) remove(n *node) (bytes, blobs int64) {
	for _, id := range n.reaches {
		if id == inventory.Missing {
			continue
		}
		if h.by[id]--; h.by[id] == 0 {
			bytes += h.bytes[id]
			blobs++
			h.held--
		}
	}
	return bytes, blobs
}
