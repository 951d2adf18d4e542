package plan

import (
	"cmp"
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
	names      []string // of the repository: its own, and those of links to it
	manifest   *inventory.Manifest
	tags       []string // that make it live by itself
	owners     []*node  // indexes that list it, and its subject
	wholes     []*node  // of these, the manifests that name it: to use a part is to use the whole
	dependents []*node
	rules      []*policy.Rule // the first that matches each of its tags; nil: none does
	verdict    *Verdict       // among those of the simulation,
	at         int            // there
	pushed     time.Time      // last push that is known of
	pulled     time.Time      // last pull, of it or of a part
	used       time.Time      // last push or pull, of it or of a part
	reaches    []int32        // numbers of what it takes: itself and the blobs that it names
	lease      string         // id; empty: none
	held       hold           // what else keeps it whatever its rules say
	signs      content.Digest // subject of a signature's tag that is not in the repository
	newest     bool           // a rule keeps it for being the newest
	seen       bool           // the storage does not tell when it was pushed: at the latest when it was seen first
	gone       bool
	decided    bool // by its own rule, of a root
}

// hold is what keeps a manifest whatever its rules say. The zero value is nothing.
type hold struct {
	reason  Reason
	by      string
	explain string
}

// pinned reports whether a manifest stays whatever its rules say.
func (n *node) pinned() bool { return n.lease != "" || n.held.reason != "" }

// compare compares its digest.
func (n *node) compare(d content.Digest) int {
	return strings.Compare(string(n.manifest.Digest), string(d))
}

// root reports whether its own rule decides on it: nothing owns it, or it has a tag.
func (n *node) root() bool { return len(n.owners) == 0 || len(n.tags) > 0 }

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
	s.holdSignatures()
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

// nodesOf are those of one repository, each with its rules, and its verdict from a place on.
func (s *simulation) nodesOf(r *inventory.Repository, from int) []*node {
	f := s.family(r, from)
	f.use(s.in, r)
	for _, n := range f.nodes {
		n.rules = s.rulesOf(n)
		n.settle(s.in)
		if len(n.rules) > 0 && n.rules[0] != nil {
			n.verdict.Rule = n.rules[0].Name
		}
	}
	f.freeze(r)
	return f.nodes
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
