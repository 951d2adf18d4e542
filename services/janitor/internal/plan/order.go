package plan

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// earliest is before any registry of today: an earlier time in its storage is no time, as after a
// backup was restored without its times.
var earliest = time.Date(2014, 1, 1, 0, 0, 0, 0, time.UTC)

// Timed reports whether a time can be one at which something was stored. What is not timed does not
// age by it.
func Timed(at time.Time) bool { return at.After(earliest) }

// age is how old something of the storage is. What is not timed is new.
func (in Input) age(at time.Time) time.Duration {
	if !Timed(at) {
		return 0
	}
	return in.Now.Sub(at)
}

// ranked is a manifest with what it is ordered by.
type ranked struct {
	*node
	at   time.Time // that the order is by
	made time.Time // where many share a time of first sight: when it was made
}

func compareRanks(a, b ranked) int {
	return cmp.Or(a.at.Compare(b.at), a.pushed.Compare(b.pushed), a.made.Compare(b.made))
}

// unclear reports whether the order of two manifests is not known: both were seen first at the same
// moment, and it is not known which was made before the other.
func unclear(a, b ranked) bool { return a.seen && b.seen && compareRanks(a, b) == 0 }

// rank orders manifests by a time, the earliest first. Those that were seen first at the same moment
// are ordered by when they were made, if that is known of all of them.
func rank(nodes []*node, at func(*node) time.Time) []ranked {
	all := make([]ranked, len(nodes))
	unknown := map[time.Time]bool{} // times of first sight with one of which it is not known when it was made
	for i, n := range nodes {
		all[i] = ranked{node: n, at: at(n)}
		if n.seen {
			all[i].made = n.made()
			unknown[n.pushed] = unknown[n.pushed] || all[i].made.IsZero()
		}
	}
	for i := range all {
		if unknown[all[i].pushed] {
			all[i].made = time.Time{}
		}
	}
	slices.SortStableFunc(all, compareRanks)
	return all
}

// made is when what a manifest is of was made: of an index, when the newest of what it lists was.
// Zero: not known.
func (n *node) made() time.Time {
	last := n.manifest.Created
	if len(n.manifest.Children) == 0 {
		return last
	}
	for _, d := range n.dependents {
		if !slices.Contains(n.manifest.Children, d.manifest.Digest) {
			continue
		}
		if d.manifest.Created.IsZero() {
			return time.Time{}
		}
		if d.manifest.Created.After(last) {
			last = d.manifest.Created
		}
	}
	return last
}

// markNewest marks those that a rule keeps for being the newest, and those of which it is not known
// whether they are.
func (s *simulation) markNewest(rule *policy.Rule, matched []*node) {
	if rule.Keep == nil {
		return
	}
	mark := func(bound string, most *int, at func(*node) time.Time) {
		if most == nil || *most == 0 {
			return
		}
		sorted := rank(matched, at)
		slices.Reverse(sorted)
		for i, n := range sorted {
			if i < *most {
				n.newest, n.verdict.Rule = true, rule.Name
				continue
			}
			if !unclear(n, sorted[*most-1]) {
				break
			}
			n.newest, n.verdict.Rule = true, rule.Name
			s.refuse(n.repository, bound+" of rule "+rule.Name)
		}
	}
	mark("newest_by_push", rule.Keep.NewestByPush, func(n *node) time.Time { return n.pushed })
	mark("newest_by_pull", rule.Keep.NewestByPull, func(n *node) time.Time { return n.pulled })
}

// refuse notes that a bound keeps more of a repository than it says, for want of an order.
func (s *simulation) refuse(repository, bound string) {
	text := fmt.Sprintf("%s: %s keeps more than it says: manifests were seen first at the same moment, and neither their push "+
		"times nor when they were made tell which is newer", repository, bound)
	if !slices.Contains(s.refused, text) {
		s.refused = append(s.refused, text)
	}
}
