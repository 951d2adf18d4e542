package plan

import (
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
)

func (s *simulation) goesByAge(n *node, rule policy.Rule) {
	s.remove(n, rule.Name, Age)
	n.verdict.Explain = fmt.Sprintf("unused for %s, longer than the %s of rule %q", human.Span(n.verdict.Age), human.Span(*rule.Keep.Age), rule.Name)
}

func (s *simulation) goesByBytes(n *node, rule policy.Rule, held group) {
	s.remove(n, rule.Name, Bytes)
	n.verdict.Explain = fmt.Sprintf("%s %s, %s more than rule %q keeps; unused for %s",
		held.holds(n, rule), human.Size(held.bytes), human.Size(held.bytes-*rule.Keep.Bytes), rule.Name, human.Span(n.verdict.Age))
}

func (s *simulation) goesByRecords(n *node, rule policy.Rule, held group) {
	s.remove(n, rule.Name, Records)
	n.verdict.Explain = fmt.Sprintf("%s %d records, %d more than rule %q keeps; unused for %s",
		held.holds(n, rule), held.records, held.records-*rule.Keep.Records, rule.Name, human.Span(n.verdict.Age))
}

func (s *simulation) goesByDisk(n *node, rule policy.Rule) {
	s.remove(n, rule.Name, FreeDisk)
	n.verdict.Explain = fmt.Sprintf("%s of the disk are free, less than the %s of rule %q; unused for %s",
		human.Size(n.place.listing.Disk.FreeBytes), human.Size(rule.Keep.FreeDisk.LowBytes), rule.Name, human.Span(n.verdict.Age))
}

// holds begins a sentence with what a bound counts over.
func (g group) holds(n *node, rule policy.Rule) string {
	switch rule.Keep.Scope {
	case policy.Fleet:
		return "all caches hold"
	case policy.PerProject:
		return fmt.Sprintf("project %s has", g.name)
	case policy.PerType:
		return fmt.Sprintf("records of type %s have", g.name)
	case policy.PerCache:
	}
	return "the cache holds"
}

// stays gives a record that stays its reason in words.
func (s *simulation) stays(n *node) {
	v := &n.verdict
	switch v.Reason {
	case InUse:
		v.Explain = HeldBy(*n.Record, n.place.listing.Time)
	case Leased:
		v.Explain = fmt.Sprintf("lease %s holds it", v.KeptBy)
	case Pinned:
		v.Explain = fmt.Sprintf("pin %s keeps it", v.KeptBy)
	case Protected:
		v.Explain = fmt.Sprintf("rule %q protects it", v.Rule)
	case Child:
		child := n.keeper()
		v.KeptBy = child.ID
		v.Explain = fmt.Sprintf("record %s is made upon it, which stays: %s", child.ID, child.why())
	case WithinBounds:
		v.Explain = fmt.Sprintf("within all bounds; unused for %s", human.Span(v.Age))
	}
}

// HeldBy says who holds a record that was in use when it was listed.
func HeldBy(r cache.Record, listed time.Time) string {
	ago := max(0, listed.Sub(r.LastUsed)).Seconds()
	switch r.Hold {
	case cache.HeldWithoutBuild:
		return "BuildKit holds a reference to it, and no build runs: a build that was cut off may have left it, until the daemon restarts"
	case cache.HeldByHistory:
		return "it is pinned in the daemon's history"
	case cache.HeldByLastUse:
		return fmt.Sprintf("it was used %.1fs ago, too recently to tell whether it is used again", ago)
	case cache.HeldByListing:
		return fmt.Sprintf("its last use was noted %.1fs ago, by the listing itself: BuildKit dates the use of a mutable record when it is listed next", ago)
	case cache.HeldByBuild:
	}
	return "a build uses it"
}

// keeper is the record that is made upon another and keeps it: not one that would
// go itself if it could.
func (n *node) keeper() *node {
	for n.verdict.Reason == Child {
		var next *node
		for _, child := range n.children {
			if !child.gone && (next == nil || child.better(next)) {
				next = child
			}
		}
		if next == nil {
			break
		}
		n = next
	}
	return n
}

// better reports whether a child tells more of why its parent stays than another:
// one that is kept by itself, and then the one that was used last.
func (n *node) better(o *node) bool {
	if n.kept != o.kept {
		return n.kept
	}
	return n.compare(o) > 0
}

// why says why a child stays, as the end of a sentence.
func (n *node) why() string {
	switch n.verdict.Reason {
	case InUse:
		return HeldBy(*n.Record, n.place.listing.Time)
	case Leased:
		return "it is leased"
	case Pinned:
		return "it is pinned"
	case Protected:
		return "a rule protects it"
	case OverBudget:
		return "the budget of a run is spent"
	default:
		return fmt.Sprintf("it was used %s ago", human.Span(n.verdict.Age))
	}
}
