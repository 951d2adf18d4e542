package enforce

import (
	"iter"

	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
)

// familyAt is the end of the family of verdicts that begins at a place: what goes with a manifest
// follows it.
func familyAt(all []plan.Verdict, from int) (to int) {
	for to = from + 1; to < len(all) && all[to].Reason == plan.Family; {
		to++
	}
	return to
}

// inFamilies are verdicts in batches of at least so many, but for the last, none of which parts a
// family: a signature is not left without its subject when a run ends.
func inFamilies(all []plan.Verdict, least int) iter.Seq[[]plan.Verdict] {
	return func(yield func([]plan.Verdict) bool) {
		for from := 0; from < len(all); {
			to := from
			for to < len(all) && to-from < least {
				to = familyAt(all, to)
			}
			if !yield(all[from:to]) {
				return
			}
			from = to
		}
	}
}

// held is why something stays, and what keeps it. Without a reason it does not.
type held struct {
	reason plan.Reason
	by     string
}

// holdFamilies says for each of some verdicts why it stays. A family goes together or stays together:
// who uses a part or a signature uses the whole.
func (h holders) holdFamilies(part []plan.Verdict, p *pushes) []held {
	all := make([]held, len(part))
	for from := 0; from < len(part); {
		to := familyAt(part, from)
		var first held
		for i := from; i < to && first.reason == ""; i++ {
			is, reason, by := h.hold(part[i])
			if !is {
				is, reason, by = p.named(part[i])
			}
			if is {
				first = held{reason, by}
			}
		}
		for i := from; i < to; i++ {
			all[i] = first
		}
		from = to
	}
	return all
}
