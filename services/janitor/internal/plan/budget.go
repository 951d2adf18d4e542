package plan

import "fmt"

// families are what goes, each root with what goes with it.
func families(order []*node) (all [][]*node) {
	for from := 0; from < len(order); {
		to := from + 1
		for to < len(order) && order[to].verdict.Reason == Family {
			to++
		}
		all = append(all, order[from:to])
		from = to
	}
	return all
}

// spend says what each removal frees, in the order of going, and cuts the plan to its budget. A
// family goes whole or not at all: a signature is not left without its subject. One that is larger
// than the budget stays.
func (s *simulation) spend() {
	held := s.holders()
	for _, n := range s.nodes {
		held.add(n)
	}
	all := families(s.order)
	s.order = s.order[:0:0]
	var spent Amount
	for i, family := range all {
		family = stillGoing(family)
		if len(family) == 0 {
			continue
		}
		takes := held.removeAll(family)
		switch {
		case !s.within(takes):
			held.addAll(family)
			late(family, fmt.Sprintf("it and what goes with it, %d manifests, are more than the budget of a run", len(family)))
		case !s.within(spent.Plus(takes)):
			for _, rest := range all[i:] {
				late(stillGoing(rest), "over the budget of a run: goes in a later one")
			}
			return
		default:
			spent = spent.Plus(takes)
			s.order = append(s.order, family...)
		}
	}
}

// within reports whether an amount is within the budget of the policy.
func (s *simulation) within(a Amount) bool {
	b := s.in.Policy.Budget
	return (b.Manifests == nil || a.Manifests <= *b.Manifests) && (b.Bytes == nil || a.Bytes <= *b.Bytes)
}

// stillGoing are those of a family that go, whose owners all went before.
func stillGoing(family []*node) (going []*node) {
	for _, n := range family {
		if allGone(n.owners) {
			going = append(going, n)
		} else {
			late([]*node{n}, "over the budget of a run: goes in a later one")
		}
	}
	return going
}

// late has nodes stay for a later run.
func late(nodes []*node, why string) {
	for _, n := range nodes {
		n.gone = false
		n.verdict.Remove, n.verdict.Frees, n.verdict.FreesBlobs = false, 0, 0
		n.stays(OverBudget, "", why)
	}
}

// removeAll notes what the removal of each frees, and returns that of all.
func (h *holders) removeAll(nodes []*node) (sum Amount) {
	for _, n := range nodes {
		bytes, blobs := h.remove(n)
		n.verdict.Frees, n.verdict.FreesBlobs = bytes, max(0, blobs-1)
		sum = sum.Plus(Amount{Manifests: 1, Bytes: bytes})
	}
	return sum
}

func (h *holders) addAll(nodes []*node) {
	for _, n := range nodes {
		h.add(n)
	}
}
