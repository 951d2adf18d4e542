package plan

import "slices"

// plan makes the plan of what was simulated.
func (s *simulation) plan() *Plan {
	p := &Plan{Time: s.in.Now, PolicyVersion: s.in.Policy.Version, Verdicts: make([]Verdict, 0, len(s.nodes))}
	byRule := map[string]*Amount{}
	for _, rule := range s.in.Policy.Rules {
		p.Rules = append(p.Rules, RuleAmount{Rule: rule.Name})
	}
	for i := range p.Rules {
		byRule[p.Rules[i].Rule] = &p.Rules[i].Amount
	}
	for i, n := range s.gone {
		n.verdict.Order = int64(i) + 1
		p.Removes.add(n.verdict.Frees)
		byRule[n.verdict.Rule].add(n.verdict.Frees)
		p.Verdicts = append(p.Verdicts, n.verdict)
	}
	left := false // anything that a run may remove
	for _, n := range sorted(s.nodes) {
		s.stays(n)
		p.Keeps.add(n.bytes())
		if n.verdict.Shrink > 0 {
			p.Removes.Bytes += n.verdict.Frees
			byRule[n.verdict.Rule].Bytes += n.verdict.Frees
		}
		left = left || slices.Contains([]Reason{WithinBounds, OverBudget, NoHelp}, n.verdict.Reason)
		p.Verdicts = append(p.Verdicts, n.verdict)
	}
	for _, r := range s.rooms {
		p.Rooms = append(p.Rooms, r.room())
	}
	p.RemovesAll = !left && len(s.gone) > 0
	return p
}

func (a *Amount) add(bytes int64) {
	a.Records++
	a.Bytes += bytes
}

// With is both plans together, of different caches: what goes first, then what stays.
func (p *Plan) With(o *Plan) *Plan {
	sum := func(a, b Amount) Amount { return Amount{a.Records + b.Records, a.Bytes + b.Bytes} }
	out := &Plan{
		Time: p.Time, PolicyVersion: p.PolicyVersion, Rules: slices.Clone(p.Rules),
		Removes: sum(p.Removes, o.Removes), Tied: sum(p.Tied, o.Tied), Keeps: sum(p.Keeps, o.Keeps),
		Rooms: slices.Concat(p.Rooms, o.Rooms),
	}
	for i, rule := range o.Rules {
		if i == len(out.Rules) {
			out.Rules = append(out.Rules, rule)
		} else {
			out.Rules[i].Amount = sum(out.Rules[i].Amount, rule.Amount)
		}
	}
	var ties int32
	for _, v := range p.Verdicts {
		ties = max(ties, v.Tie)
	}
	for _, goes := range []bool{true, false} {
		for i, of := range []*Plan{p, o} {
			for _, v := range of.Verdicts {
				if v.Remove != goes {
					continue
				}
				if v.Tie > 0 && i == 1 {
					v.Tie += ties // groups of their own
				}
				if goes {
					v.Order = int64(len(out.Verdicts)) + 1
				}
				out.Verdicts = append(out.Verdicts, v)
			}
		}
	}
	out.RemovesAll = out.Removes.Records > 0 && out.Keeps.Records == 0
	return out
}
