package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// Make applies the policy. For each tag of a manifest the first rule that matches decides, and
// the strongest keep of any of its tags wins: it goes when all of them have it go. What an index
// lists and what refers to a subject goes when the last of them goes, unless it has a tag of its
// own. Within bounds of bytes, the longest unused goes first.
func Make(in Input) *Plan {
	s := newSimulation(in)
	for _, repository := range s.repositories() {
		if in.within(repository[0].repository) {
			s.decide(repository)
		}
	}
	if in.Policy.MaxBytes != nil {
		s.fit(s.nodes, *in.Policy.MaxBytes, "max_bytes", func(n *node) bool { return in.within(n.repository) })
	}
	return s.plan()
}

func (in Input) within(repository string) bool { return in.Within == nil || in.Within(repository) }

// repositories are the nodes by repository.
func (s *simulation) repositories() (all [][]*node) {
	for from := 0; from < len(s.nodes); {
		to := from
		for to < len(s.nodes) && s.nodes[to].repository == s.nodes[from].repository {
			to++
		}
		all = append(all, s.nodes[from:to])
		from = to
	}
	return all
}

// decide applies the rules to one repository.
func (s *simulation) decide(nodes []*node) {
	byRule := map[*policy.Rule][]*node{}
	for _, n := range nodes {
		for _, r := range n.rules {
			if r != nil && n.root() {
				byRule[r] = append(byRule[r], n)
			}
		}
	}
	for i := range s.in.Policy.Rules {
		rule := &s.in.Policy.Rules[i]
		s.markNewest(rule, byRule[rule])
	}
	for _, n := range byAge(nodes) {
		if n.root() {
			s.judge(n)
		}
	}
	for i := range s.in.Policy.Rules {
		rule := &s.in.Policy.Rules[i]
		if rule.Keep != nil && rule.Keep.Bytes != nil && len(byRule[rule]) > 0 {
			only := []*policy.Rule{rule} // another one keeps what it does not remove
			s.fit(nodes, *rule.Keep.Bytes, rule.Name, func(n *node) bool { return slices.Equal(n.rules, only) })
		}
	}
}

// byAge are nodes, the longest unused first.
func byAge(nodes []*node) []*node {
	sorted := slices.Clone(nodes)
	slices.SortStableFunc(sorted, func(a, b *node) int { return a.used.Compare(b.used) })
	return sorted
}

func (n *node) stays(reason Reason, by, why string) {
	n.verdict.Reason, n.verdict.KeptBy, n.verdict.Explain = reason, by, why
}

// remove takes out a root, and what lives only with it.
func (s *simulation) remove(n *node, reason Reason, why string) {
	n.decided = true
	if allGone(n.owners) { // else it goes with the last of them
		s.goes(n, reason, why)
	}
}

func allGone(nodes []*node) bool {
	return !slices.ContainsFunc(nodes, func(n *node) bool { return !n.gone })
}

func (s *simulation) goes(n *node, reason Reason, why string) {
	n.gone = true
	n.verdict.Remove, n.verdict.Reason, n.verdict.Explain, n.verdict.KeptBy = true, reason, why, ""
	s.order = append(s.order, n)
	for _, d := range n.dependents {
		if !d.gone && !d.pinned() && allGone(d.owners) && (len(d.tags) == 0 || d.decided) {
			s.goes(d, Family, "goes with "+string(n.manifest.Digest))
		}
	}
}

// fit removes roots, the longest unused first, until what nodes reach takes at most so
// many bytes.
func (s *simulation) fit(nodes []*node, most int64, name string, mayGo func(*node) bool) {
	held, total := s.holders(), int64(0)
	for _, n := range nodes {
		if !n.gone {
			total += held.add(n)
		}
	}
	order := rank(nodes, func(n *node) time.Time { return n.used })
	for i, of := range order {
		n := of.node
		if total <= most {
			return
		}
		if n.gone || !n.root() || n.decided || n.pinned() || n.newest || !mayGo(n) || !n.bounded() {
			continue
		}
		if most > 0 && (i > 0 && unclear(of, order[i-1]) || i+1 < len(order) && unclear(of, order[i+1])) {
			s.refuse(n.repository, name)
			return // what was used later may not go before it
		}
		from := len(s.order)
		s.remove(n, Bytes, fmt.Sprintf("beyond %s, the longest unused; %s keeps %s", human.Size(most), name, human.Size(most)))
		for _, gone := range s.order[from:] {
			bytes, _ := held.remove(gone)
			total -= bytes
		}
	}
}

// bounded reports whether rules match all of its tags, and none protects it.
func (n *node) bounded() bool {
	return !slices.ContainsFunc(n.rules, func(r *policy.Rule) bool { return r == nil || r.Protect })
}

// plan makes the plan of what was simulated.
func (s *simulation) plan() *Plan {
	s.spend()
	p := &Plan{Time: s.in.Now, PolicyVersion: s.in.Policy.Version}
	byRule := map[string]*Amount{}
	for _, r := range s.in.Policy.Rules {
		p.Rules = append(p.Rules, RuleAmount{Rule: r.Name})
	}
	for i := range p.Rules {
		byRule[p.Rules[i].Rule] = &p.Rules[i].Amount
	}
	for _, n := range s.order {
		one := n.verdict.Amount()
		p.Removes = p.Removes.Plus(one)
		if a := byRule[n.verdict.Rule]; a != nil {
			*a = a.Plus(one)
		}
	}
	held := s.holders()
	inParallel(len(s.nodes), func(i int) { s.nodes[i].explain() })
	stay := make([]*node, 0, len(s.nodes)-len(s.order))
	for _, n := range s.nodes {
		if n.gone || !s.in.within(n.repository) {
			continue
		}
		before := held.held
		bytes := held.add(n)
		p.Keeps = p.Keeps.Plus(Amount{Manifests: 1, Blobs: held.held - before, Bytes: bytes})
		stay = append(stay, n)
	}
	p.RemovesAll = p.Removes.Manifests > 0 && p.Keeps.Manifests == 0
	going, staying := p.oddities(s.in)
	p.Warnings = append(p.Warnings, s.refused...)
	p.Verdicts = s.arrange(s.order, going, stay, staying)
	for _, v := range going {
		p.Removes = p.Removes.Plus(v.Amount())
	}
	for i := range len(s.order) + len(going) {
		p.Verdicts[i].Order = int64(i) + 1
	}
	return p
}

// arrange puts verdicts in the order of a plan. Those of nodes are moved where they are: they
// are most of what a plan takes, and there is no room for all twice.
func (s *simulation) arrange(order []*node, going []Verdict, stay []*node, staying []Verdict) []Verdict {
	all := slices.Grow(s.verdicts, len(going)+len(staying))[:len(s.verdicts)+len(going)+len(staying)]
	at := make([]*node, len(all)) // whose is where
	for _, n := range s.nodes {
		at[n.at] = n
	}
	move := func(nodes []*node, to int) {
		for i, n := range nodes {
			other, from := at[to+i], n.at
			all[to+i], all[from] = all[from], all[to+i]
			at[to+i], at[from] = n, other
			n.at = to + i
			if other != nil {
				other.at = from
			}
		}
	}
	move(order, 0)
	move(stay, len(order)+len(going))
	copy(all[len(order):], going)
	end := len(order) + len(going) + len(stay)
	copy(all[end:], staying)
	clear(all[end+len(staying):])
	return all[:end+len(staying)]
}

// explain says why a manifest stays that no rule of its own keeps.
func (n *node) explain() {
	if n.gone {
		return
	}
	if n.lease != "" {
		n.stays(Leased, n.lease, "a build uses it: lease "+n.lease)
		return
	}
	if n.held.reason != "" {
		n.stays(n.held.reason, n.held.by, n.held.explain)
		return
	}
	for _, o := range n.owners {
		if !o.gone && (len(n.tags) == 0 || n.decided) && n.verdict.Reason != OverBudget {
			n.stays(Parent, string(o.manifest.Digest), "belongs to "+string(o.manifest.Digest)+", which stays")
			return
		}
	}
	if n.verdict.Explain == "" {
		n.stays(NoRule, "", n.unmatched())
	}
}

// unmatched says what of a manifest no rule matches.
func (n *node) unmatched() string {
	if len(n.rules) > 1 {
		return "no rule matches one of its tags"
	}
	return "no rule matches it"
}

// Plus is both together.
func (a Amount) Plus(b Amount) Amount {
	return Amount{a.Manifests + b.Manifests, a.Blobs + b.Blobs, a.Bytes + b.Bytes, a.Uploads + b.Uploads}
}
