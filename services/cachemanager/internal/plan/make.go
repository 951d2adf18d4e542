package plan

import (
	"slices"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
)

// Make simulates the policy on the listings. It takes time about linear in the
// records, and one pass for each rule.
//
// A record goes after all that are made upon it, as in BuildKit, whose prune looks
// only at what has no children. So a child that stays keeps all that it is made
// upon. Of those that may go, the longest unused goes first; then the least used,
// the largest, and the first by cache and id, so that nothing is left to chance: a
// run removes by id, in the order of the plan.
//
// BuildKit may have two records for the same data, one that is mutable and one that
// is not; it lists and removes them as one.
func Make(in Input) *Plan {
	s := newSimulation(in)
	for again := true; again; again = s.released() {
		s.rooms = nil
		for _, rule := range in.Policy.Rules {
			s.apply(rule)
		}
	}
	s.spend(in.Policy.Budget)
	return s.plan()
}

// simulation is the state of all caches while a policy is applied.
type simulation struct {
	in     Input
	nodes  []*node
	caches []*place
	gone   []*node // in the order of their going
	rooms  []room
}

// place is one cache in the simulation.
type place struct {
	listing *cache.Listing
	nodes   []*node // its records
	commons []*common
	freed   int64 // bytes, so far
}

// node is a record in the simulation.
type node struct {
	*cache.Record
	place    *place
	parents  []*node
	children []*node
	standing int // children that have not gone
	commons  []*common
	verdict  Verdict
	kept     bool // in use, pinned, leased or protected
	busy     bool // builds hold it, or a record that is made upon it
	wanted   bool // a rule would have removed it but for its children
	gone     bool
	shrunk   int64 // bytes that it is smaller by
}

// room is what a rule wants of a cache whose free disk is not known.
type room struct {
	place   *place
	rule    policy.Rule
	matched map[*node]bool
}

// common is bytes of several records.
type common struct {
	bytes   int64
	holders []*node
	left    int // holders that have not gone
}

func newSimulation(in Input) *simulation {
	s := &simulation{in: in}
	for i := range in.Listings {
		s.add(&in.Listings[i])
	}
	// By name and id, so that the order of listings and records is without effect.
	slices.SortFunc(s.nodes, (*node).compareNames)
	slices.SortFunc(s.caches, func(a, b *place) int { return a.listing.Cache.Compare(b.listing.Cache) })
	s.keepInUse()
	s.keepPinned()
	return s
}

// add adds one cache.
func (s *simulation) add(listing *cache.Listing) {
	p := &place{listing: listing}
	byID := make(map[string]*node, len(listing.Records))
	for i := range listing.Records {
		r := &listing.Records[i]
		n := &node{Record: r, place: p}
		n.verdict = Verdict{Cache: listing.Cache, Record: *r, Reason: WithinBounds, Age: s.in.Now.Sub(r.LastActive())}
		byID[r.ID] = n
		p.nodes = append(p.nodes, n)
	}
	for _, n := range p.nodes {
		for _, id := range n.Parents {
			if parent := byID[id]; parent != nil && parent != n {
				n.parents = append(n.parents, parent)
				parent.children = append(parent.children, n)
				parent.standing++
			}
		}
	}
	for _, shared := range listing.Common {
		c := &common{bytes: shared.Bytes}
		for _, id := range shared.Records {
			if n := byID[id]; n != nil {
				c.holders = append(c.holders, n)
				n.commons = append(n.commons, c)
			}
		}
		c.left = len(c.holders)
		p.commons = append(p.commons, c)
	}
	s.caches = append(s.caches, p)
	s.nodes = append(s.nodes, p.nodes...)
}

// keepInUse notes what builds use and what is leased.
func (s *simulation) keepInUse() {
	for _, n := range s.nodes {
		switch lease := s.in.Leases[n.place.listing.Cache][n.ID]; {
		case n.InUse:
			n.keep(InUse, "")
			n.occupy()
		case lease != "":
			n.keep(Leased, lease)
		}
	}
}

// occupy notes that builds hold a record, with all that it is made upon.
func (n *node) occupy() {
	if n.busy {
		return
	}
	n.busy = true
	for _, parent := range n.parents {
		parent.occupy()
	}
}

// keepPinned notes what is pinned, with all that it is made upon.
func (s *simulation) keepPinned() {
	type name struct {
		cache cache.Ref
		id    string
	}
	pins := map[name]string{}
	for _, pin := range s.in.Pins {
		if pin.Match == nil {
			pins[name{pin.Cache, pin.Record}] = pin.ID
		}
	}
	for _, n := range s.nodes {
		if id := pins[name{n.place.listing.Cache, n.ID}]; id != "" {
			n.pin(id)
		}
	}
	for _, pin := range s.in.Pins {
		for _, n := range s.nodes {
			if pin.Match != nil && pin.Match.Fits(n.place.listing.Cache, *n.Record, s.in.Now) {
				n.pin(pin.ID)
			}
		}
	}
}

// pin keeps a record and all that it is made upon.
func (n *node) pin(id string) {
	for todo := []*node{n}; len(todo) > 0; {
		n, todo = todo[len(todo)-1], todo[:len(todo)-1]
		if n.kept && n.verdict.Reason == Pinned {
			continue // and so are its parents
		}
		if !n.kept {
			n.keep(Pinned, id)
		}
		todo = append(todo, n.parents...)
	}
}

// keep notes that a record stays, whatever the rules say.
func (n *node) keep(reason Reason, by string) {
	n.kept, n.verdict.Reason, n.verdict.KeptBy = true, reason, by
}

// bytes are those that count against a bound: BuildKit too leaves out what is shared.
func (n *node) bytes() int64 {
	if n.Shared {
		return 0
	}
	return max(n.Bytes, 0) - n.shrunk
}

// frees is what its removal frees now.
func (n *node) frees() int64 {
	bytes := n.bytes()
	for _, c := range n.commons {
		if c.left == 1 {
			bytes += c.bytes
		}
	}
	return bytes
}

// mayGo reports whether nothing keeps it now.
func (n *node) mayGo() bool { return !n.gone && !n.kept && n.standing == 0 }

// remove takes a record out of its cache.
func (s *simulation) remove(n *node, rule string, reason Reason) {
	n.verdict.Frees = n.frees() + n.shrunk
	n.place.freed -= n.shrunk
	n.verdict.Shrink, n.shrunk = 0, 0
	n.gone = true
	n.verdict.Remove, n.verdict.Rule, n.verdict.Reason, n.verdict.KeptBy = true, rule, reason, ""
	for _, parent := range n.parents {
		parent.standing--
	}
	for _, c := range n.commons {
		c.left--
	}
	n.place.freed += n.verdict.Frees
	s.gone = append(s.gone, n)
}

// released reports whether a record is there that a rule would have removed but for
// children that went later. Then the rules are applied once more, so that the policy
// holds when the plan is carried out.
func (s *simulation) released() bool {
	if !slices.ContainsFunc(s.nodes, func(n *node) bool { return n.wanted && !n.gone && n.standing == 0 }) {
		return false
	}
	for _, n := range s.nodes {
		if n.wanted || n.verdict.Reason == Protected { // from the rules that follow, not from those before
			n.wanted, n.kept = false, n.kept && n.verdict.Reason != Protected
			if !n.kept && !n.gone {
				n.verdict.Reason = WithinBounds
			}
		}
	}
	return true
}

// spend cuts the plan to a budget: the first that go are within it.
func (s *simulation) spend(b policy.Budget) {
	var spent Amount
	cut := len(s.gone)
	for i, n := range s.gone {
		if b.Records != nil && spent.Records+1 > *b.Records || b.Bytes != nil && spent.Bytes+n.verdict.Frees > *b.Bytes {
			cut = i
			break
		}
		spent.Records++
		spent.Bytes += n.verdict.Frees
	}
	for _, n := range s.gone[cut:] {
		n.gone = false
		n.verdict.Remove, n.verdict.Reason, n.verdict.Frees = false, OverBudget, 0
		n.verdict.Explain = "over the budget of a run: goes in a later one"
	}
	s.gone = s.gone[:cut]
}
