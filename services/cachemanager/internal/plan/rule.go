package plan

import (
	"cmp"
	"container/heap"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/pkg/human"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
)

// apply applies one rule to what those before it have left.
func (s *simulation) apply(rule policy.Rule) {
	var matched []*node
	for _, n := range s.nodes {
		if !n.gone && rule.Match.Fits(n.place.listing.Cache, *n.Record, s.in.Now) {
			matched = append(matched, n)
		}
	}
	for _, n := range matched {
		n.note(rule)
	}
	if rule.Protect {
		for _, n := range matched {
			if !n.kept {
				n.keep(Protected, "")
			}
		}
	}
	if rule.Keep == nil {
		return
	}
	s.age(rule, matched)
	for _, group := range s.groups(rule, matched) {
		s.bound(rule, group)
	}
	s.freeDisk(rule, matched)
}

// note remembers the first rule that speaks of a record that stays.
func (n *node) note(rule policy.Rule) {
	if n.verdict.Rule == "" {
		n.verdict.Rule = rule.Name
	}
}

// age removes what was unused for longer than the rule keeps.
func (s *simulation) age(rule policy.Rule, matched []*node) {
	if rule.Keep.Age == nil {
		return
	}
	var old []*node
	for _, n := range matched {
		if n.verdict.Age > *rule.Keep.Age {
			old = append(old, n)
		}
	}
	s.sweep(old, func(*node) bool { return true }, func(n *node) { s.goesByAge(n, rule) })
	s.blocked(old, rule)
}

// group is what a bound counts over.
type group struct {
	name    string // of the project or type; empty: the whole
	nodes   []*node
	bytes   int64
	records int64
	commons map[*common]int // of its records: how many of them stand
}

// groups divides what matches by the scope of the rule, in the order of names.
func (s *simulation) groups(rule policy.Rule, matched []*node) []*group {
	if rule.Keep.Bytes == nil && rule.Keep.Records == nil {
		return nil
	}
	type key struct {
		place *place
		name  string
	}
	byKey := map[key]*group{}
	var all []*group
	add := func(k key, n *node) {
		g := byKey[k]
		if g == nil {
			g = &group{name: k.name}
			byKey[k] = g
			all = append(all, g)
		}
		g.nodes = append(g.nodes, n)
	}
	for _, n := range matched {
		if n.gone {
			continue
		}
		switch rule.Keep.Scope {
		case policy.Fleet:
			add(key{}, n)
		case policy.PerType:
			add(key{n.place, string(n.Type)}, n)
		case policy.PerProject:
			for _, project := range n.Projects {
				add(key{n.place, project}, n)
			}
		case policy.PerCache:
			add(key{place: n.place}, n)
		}
	}
	return all
}

// count adds up what the group holds now. Common bytes count once.
func (g *group) count() {
	g.bytes, g.records, g.commons = 0, 0, map[*common]int{}
	for _, n := range g.nodes {
		if n.gone {
			continue
		}
		g.records++
		g.bytes += n.bytes()
		for _, c := range n.commons {
			if g.commons[c]++; g.commons[c] == 1 {
				g.bytes += c.bytes
			}
		}
	}
}

// take counts a record out that goes.
func (g *group) take(n *node) {
	g.records--
	g.bytes -= n.bytes()
	for _, c := range n.commons {
		if g.commons[c]--; g.commons[c] == 0 {
			g.bytes -= c.bytes
		}
	}
}

// bound removes from a group until it is within the rule's bytes and records. Where builds hold more
// than that, the bound cannot be reached as long as they run: then what they do not hold has the bound
// for itself, and does not all go in vain.
func (s *simulation) bound(rule policy.Rule, g *group) {
	g.count() // now: a record of several projects may have gone with another group
	held, busy := *g, g.busy()
	if limit := rule.Keep.Bytes; limit != nil && g.bytes > *limit {
		most := reachable(*limit, busy.bytes)
		s.sweep(g.nodes, func(*node) bool { return g.bytes > most }, func(n *node) {
			if g.records == 1 && s.shrinks(n, g.bytes-most, rule, held) {
				g.bytes = most
				return
			}
			s.goesByBytes(n, rule, held)
			g.take(n)
		})
		s.beyond(rule, g, g.bytes > *limit, g.bytes <= most, fmt.Sprintf("builds hold %s, more than the %s of rule %q: its removal would not help",
			human.Size(busy.bytes), human.Size(*limit), rule.Name))
	}
	if limit := rule.Keep.Records; limit != nil && g.records > *limit {
		most := reachable(*limit, busy.records)
		s.sweep(g.nodes, func(*node) bool { return g.records > most }, func(n *node) {
			s.goesByRecords(n, rule, held)
			g.take(n)
		})
		s.beyond(rule, g, g.records > *limit, g.records <= most, fmt.Sprintf("builds hold %d records, more than the %d of rule %q: its removal would not help",
			busy.records, *limit, rule.Name))
	}
}

// reachable is what a group may hold where builds hold a part of it.
func reachable(limit, held int64) int64 {
	if held > limit {
		return limit + held
	}
	return limit
}

// busy is the part of a group that builds hold.
func (g *group) busy() group {
	held := group{commons: map[*common]int{}}
	for _, n := range g.nodes {
		if n.busy && !n.gone {
			held.nodes = append(held.nodes, n)
		}
	}
	held.count()
	return held
}

// beyond notes why the records of a group stay that is beyond a bound. In vain says that builds hold more
// than the bound, and that the others have it for themselves.
func (s *simulation) beyond(rule policy.Rule, g *group, still, inVain bool, why string) {
	if !still {
		return
	}
	if !inVain {
		s.blocked(g.nodes, rule)
		return
	}
	s.blocked(g.busy().nodes, rule)
	for _, n := range g.nodes {
		if !n.gone && !n.kept && !n.busy {
			n.verdict.Rule, n.verdict.Reason, n.verdict.Explain = rule.Name, NoHelp, why
		}
	}
}

// shrinks makes the last record of a group smaller, if that is enough: it is the one
// that was used last, and what is left of it is worth more than nothing. The group is at
// its bound then, for what may be below it depends on no other record.
func (s *simulation) shrinks(n *node, excess int64, rule policy.Rule, held group) bool {
	var less int64
	for i, bytes := range n.Shrinks {
		if less += bytes; less-n.shrunk < excess {
			continue
		}
		n.place.freed += less - n.shrunk
		n.shrunk = less
		n.verdict.Shrink, n.verdict.Frees, n.verdict.Rule, n.verdict.Reason = i+1, less, rule.Name, Bytes
		n.verdict.Explain = fmt.Sprintf("loses %d of its layers: %s %s, %s more than rule %q keeps, and it is the last of them",
			i+1, held.holds(n, rule), human.Size(held.bytes), human.Size(held.bytes-*rule.Keep.Bytes), rule.Name)
		return true
	}
	return false
}

// freeDisk removes where too little disk is free, until enough is.
func (s *simulation) freeDisk(rule policy.Rule, matched []*node) {
	wanted := rule.Keep.FreeDisk
	if wanted == nil {
		return
	}
	for _, p := range s.caches {
		if p.listing.Disk == nil {
			s.makeRoom(rule, p, matched)
			continue
		}
		free := func() int64 { return p.listing.Disk.FreeBytes + p.freed }
		if free() >= wanted.LowBytes {
			continue
		}
		var here []*node
		for _, n := range matched {
			if n.place == p {
				here = append(here, n)
			}
		}
		s.sweep(here, func(n *node) bool { return free() < wanted.HighBytes }, func(n *node) { s.goesByDisk(n, rule) })
		if free() < wanted.HighBytes {
			s.blocked(here, rule)
		}
	}
}

// makeRoom notes that a daemon is to see to its disk by itself.
func (s *simulation) makeRoom(rule policy.Rule, p *place, matched []*node) {
	if p.listing.Cache.Daemon == "" || s.in.Policy.Budget.Records != nil || s.in.Policy.Budget.Bytes != nil {
		return
	}
	r := room{place: p, rule: rule, matched: map[*node]bool{}}
	for _, n := range matched {
		if n.place == p {
			r.matched[n] = true
		}
	}
	if len(r.matched) > 0 {
		s.rooms = append(s.rooms, r)
	}
}

// room is the room as the plan tells it, once all rules have spoken.
func (r room) room() Room {
	out := Room{Cache: r.place.listing.Cache, Rule: r.rule.Name, LowBytes: r.rule.Keep.FreeDisk.LowBytes, HighBytes: r.rule.Keep.FreeDisk.HighBytes}
	for _, n := range r.place.nodes {
		if !n.gone && (!r.matched[n] || n.kept && n.verdict.Reason != InUse) {
			out.Except = append(out.Except, n.ID)
		}
	}
	slices.Sort(out.Except)
	return out
}

// sweep removes from nodes what may go, the longest unused first, as long as more
// is wanted. A record may go once all that are made upon it have.
func (s *simulation) sweep(nodes []*node, more func(*node) bool, goes func(*node)) {
	within := make(map[*node]bool, len(nodes))
	var ready byUse
	for _, n := range nodes {
		within[n] = true
		if n.mayGo() {
			ready = append(ready, n)
		}
	}
	heap.Init(&ready)
	for len(ready) > 0 {
		n := ready[0]
		if !more(n) {
			return
		}
		heap.Pop(&ready)
		goes(n)
		for _, parent := range n.parents {
			if within[parent] && parent.mayGo() {
				heap.Push(&ready, parent)
			}
		}
	}
}

// blocked notes, of records that a rule would have removed, which child keeps each.
func (s *simulation) blocked(nodes []*node, rule policy.Rule) {
	for _, n := range nodes {
		if !n.gone && !n.kept && n.standing > 0 {
			n.wanted = true
			n.verdict.Rule, n.verdict.Reason = rule.Name, Child
		}
	}
}

// byUse is a heap of records, the next one to go first.
type byUse []*node

func (h byUse) Len() int           { return len(h) }
func (h byUse) Less(i, j int) bool { return h[i].compare(h[j]) < 0 }
func (h byUse) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *byUse) Push(x any) { *h = append(*h, x.(*node)) } //nolint:forcetypeassert // of this package

// Pop implements heap.Interface.
func (h *byUse) Pop() any {
	old := *h
	n := old[len(old)-1]
	*h = old[:len(old)-1]
	return n
}

// compare orders records by who goes first.
func (n *node) compare(o *node) int {
	return cmp.Or(
		n.LastActive().Compare(o.LastActive()),
		cmp.Compare(n.UsageCount, o.UsageCount),
		cmp.Compare(o.bytes(), n.bytes()),
		n.compareNames(o),
	)
}

func (n *node) compareNames(o *node) int {
	return cmp.Or(n.place.listing.Cache.Compare(o.place.listing.Cache), strings.Compare(n.ID, o.ID))
}

// sorted returns what stays, the longest unused first.
func sorted(nodes []*node) []*node {
	var stay []*node
	for _, n := range nodes {
		if !n.gone {
			stay = append(stay, n)
		}
	}
	slices.SortFunc(stay, (*node).compare)
	return stay
}
