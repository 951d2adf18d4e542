package plan

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
		left = left || n.verdict.Reason == WithinBounds || n.verdict.Reason == OverBudget
		p.Verdicts = append(p.Verdicts, n.verdict)
	}
	p.RemovesAll = !left && len(s.gone) > 0
	return p
}

func (a *Amount) add(bytes int64) {
	a.Records++
	a.Bytes += bytes
}
