// Package gc simulates BuildKit's own garbage collection: what a daemon's rules, or a
// prune with the same options, would remove from a listing. It follows
// cache/manager.go of moby/buildkit v0.34 (prune, pruneOnce, calculateKeepBytes,
// sortDeleteRecords).
package gc

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
)

// Spec is a rule as it is written.
type Spec struct {
	All           bool     // also internal, frontend and shared records
	Filters       []string // in containerd's grammar, of which any must match; empty: all
	KeepDuration  time.Duration
	ReservedBytes int64
	MaxUsedBytes  int64
	MinFreeBytes  int64
}

// Rule is a rule that can be applied.
type Rule struct {
	Spec
	Matches func(cache.Record) bool // as the filters say
}

// Simulate says what the rules would remove, applied in order, one prune each. Of
// several records that BuildKit's order does not tell apart, which one goes is open:
// such verdicts have a tie, and from a tie whose records differ on, so has all that
// follows. The rules are called "gc 1", "gc 2" and so on.
func Simulate(l cache.Listing, rules []Rule, now time.Time) *plan.Plan {
	s := newSimulation(l, now)
	for i, rule := range rules {
		s.apply(fmt.Sprint("gc ", i+1), rule)
	}
	return s.plan(rules)
}

type simulation struct {
	listing cache.Listing
	now     time.Time
	nodes   []*node // by last use, those without one first
	byUses  []*node // by usage count
	gone    []*node
	ties    int32
	open    int32 // the tie since which all is open; 0: none
}

type node struct {
	cache.Record
	parents   []*node
	children  int // that are there
	verdict   plan.Verdict
	gone      bool
	candidate bool
	used, use float64 // ranks among the candidates
}

func newSimulation(l cache.Listing, now time.Time) *simulation {
	s := &simulation{listing: l, now: now}
	byID := map[string]*node{}
	for _, r := range l.Records {
		n := &node{Record: r}
		n.verdict = plan.Verdict{Cache: l.Cache, Record: r, Reason: plan.WithinBounds, Age: now.Sub(r.LastActive())}
		if r.InUse {
			n.verdict.Reason = plan.InUse
		}
		byID[r.ID] = n
		s.nodes = append(s.nodes, n)
	}
	for _, n := range s.nodes {
		for _, id := range n.Parents {
			if parent := byID[id]; parent != nil {
				n.parents = append(n.parents, parent)
				parent.children++
			}
		}
	}
	slices.SortFunc(s.nodes, func(a, b *node) int { return cmp.Or(a.LastUsed.Compare(b.LastUsed), strings.Compare(a.ID, b.ID)) })
	s.byUses = slices.Clone(s.nodes)
	slices.SortStableFunc(s.byUses, func(a, b *node) int { return cmp.Compare(a.UsageCount, b.UsageCount) })
	return s
}

// bytes are those that a bound counts.
func (n *node) bytes() int64 {
	if n.Shared {
		return 0
	}
	return max(n.Bytes, 0)
}

// apply is one prune.
func (s *simulation) apply(name string, rule Rule) {
	var total int64
	for _, n := range s.nodes {
		if !n.gone && n.Type != cache.History {
			total += n.bytes()
		}
	}
	keep := s.keepBytes(total, rule)
	for keep == 0 || total >= keep {
		candidates := s.candidates(rule)
		if len(candidates) == 0 {
			return
		}
		if keep == 0 {
			for _, n := range candidates {
				s.remove(n, name, plan.Age, 0)
			}
			continue
		}
		n, tie := s.first(candidates)
		s.remove(n, name, plan.Bytes, tie)
		n.verdict.Explain = fmt.Sprintf("the cache has %s, and rule %q keeps less than %s; unused for %s, used %d times",
			human.Size(total), name, human.Size(keep), human.Span(n.verdict.Age), n.UsageCount)
		total -= max(n.Bytes, 0) // BuildKit takes off also what is shared
	}
}

// keepBytes is calculateKeepBytes: how many bytes are to be left; 0: no bound, all
// that match go.
func (s *simulation) keepBytes(total int64, rule Rule) int64 {
	if rule.MaxUsedBytes == 0 && rule.ReservedBytes == 0 && rule.MinFreeBytes == 0 {
		return 0
	}
	keep := rule.MaxUsedBytes
	var free int64 // the file system's figure does not see what earlier rules have removed
	if s.listing.Disk != nil {
		free = s.listing.Disk.FreeBytes
	}
	if excess := rule.MinFreeBytes - free; rule.MinFreeBytes != 0 && s.listing.Disk != nil && excess > 0 {
		if keep == 0 {
			keep = total - excess
		} else {
			keep = min(keep, total-excess)
		}
	} else if rule.MinFreeBytes != 0 && keep == 0 {
		keep = total
	}
	return max(keep, rule.ReservedBytes)
}

// candidates are the records that the rule may remove now.
func (s *simulation) candidates(rule Rule) (all []*node) {
	cutOff := s.now.Add(-rule.KeepDuration)
	for _, n := range s.nodes {
		n.candidate = !n.gone && !n.InUse && n.children == 0 && n.Type != cache.History &&
			(rule.All || n.Type != cache.Internal && n.Type != cache.Frontend && !n.Shared) &&
			(rule.KeepDuration == 0 || n.LastUsed.IsZero() || !n.LastUsed.After(cutOff)) &&
			(rule.Matches == nil || rule.Matches(n.Record))
		if n.candidate {
			all = append(all, n)
		}
	}
	return all
}

// first is the candidate that goes first, and the tie that it is in; 0: none. It is
// that of the lowest sum of two ranks, by last use and by usage count.
func (s *simulation) first(candidates []*node) (*node, int32) {
	maxUsed, maxUse := s.rank()
	score := func(n *node) float64 { return n.used/maxUsed + n.use/maxUse }
	best := slices.MinFunc(candidates, func(a, b *node) int {
		return cmp.Or(cmp.Compare(score(a), score(b)), strings.Compare(a.ID, b.ID))
	})
	var equal []*node
	for _, n := range candidates {
		if score(n) == score(best) {
			equal = append(equal, n)
		}
	}
	if len(equal) == 1 {
		return best, s.open
	}
	return best, s.tie(equal)
}

// rank gives the candidates their dense ranks, and returns the highest.
func (s *simulation) rank() (maxUsed, maxUse float64) {
	maxUsed, maxUse = 1, 1
	var latest time.Time
	for _, n := range s.nodes {
		if !n.candidate {
			continue
		}
		if n.LastUsed.After(latest) {
			latest = n.LastUsed
			maxUsed++
		}
		n.used = maxUsed
	}
	count := 0
	for _, n := range s.byUses {
		if !n.candidate {
			continue
		}
		if n.UsageCount != count {
			count = n.UsageCount
			maxUse++
		}
		n.use = maxUse
	}
	return maxUsed, maxUse
}

// tie notes that BuildKit does not tell records apart.
func (s *simulation) tie(equal []*node) int32 {
	group := s.open
	for _, n := range equal {
		group = max(group, n.verdict.Tie)
	}
	if group == 0 {
		s.ties++
		group = s.ties
	}
	for _, n := range equal {
		n.verdict.Tie = group
		if n.Bytes != equal[0].Bytes || len(n.parents)+len(equal[0].parents) > 0 {
			s.open = group
		}
	}
	return group
}

func (s *simulation) remove(n *node, rule string, reason plan.Reason, tie int32) {
	n.gone = true
	n.verdict.Remove, n.verdict.Rule, n.verdict.Reason, n.verdict.Frees = true, rule, reason, n.bytes()
	n.verdict.Tie = max(n.verdict.Tie, tie)
	n.verdict.Explain = fmt.Sprintf("rule %q has no bound on bytes: all goes that it matches; unused for %s", rule, human.Span(n.verdict.Age))
	for _, parent := range n.parents {
		parent.children--
	}
	s.gone = append(s.gone, n)
}

// plan makes the plan of what was simulated.
func (s *simulation) plan(rules []Rule) *plan.Plan {
	p := &plan.Plan{Time: s.now}
	amounts := map[string]int{}
	for i := range rules {
		name := fmt.Sprint("gc ", i+1)
		amounts[name] = i
		p.Rules = append(p.Rules, plan.RuleAmount{Rule: name})
	}
	for i, n := range s.gone {
		n.verdict.Order = int64(i) + 1
		for _, a := range []*plan.Amount{&p.Removes, &p.Rules[amounts[n.verdict.Rule]].Amount} {
			a.Records++
			a.Bytes += n.verdict.Frees
		}
		if n.verdict.Tie > 0 {
			p.Tied.Records++
			p.Tied.Bytes += n.verdict.Frees
		}
		p.Verdicts = append(p.Verdicts, n.verdict)
	}
	for _, n := range s.nodes {
		if n.gone {
			continue
		}
		p.Keeps.Records++
		p.Keeps.Bytes += n.bytes()
		if n.verdict.Explain = "no rule of the daemon removes it now"; n.InUse {
			n.verdict.Explain = plan.HeldBy(n.Record, s.listing.Time)
		}
		p.Verdicts = append(p.Verdicts, n.verdict)
	}
	p.RemovesAll = len(s.gone) > 0 && p.Keeps.Records == 0
	return p
}
