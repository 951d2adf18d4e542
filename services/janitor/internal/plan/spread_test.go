package plan_test

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

type digest = content.Digest

func (u used) Pulls(repository string) iter.Seq2[digest, time.Time] {
	return func(yield func(digest, time.Time) bool) {
		for name, at := range u {
			if d, of := strings.CutPrefix(name, repository+"@"); of && !yield(digest(d), at) {
				return
			}
		}
	}
}

// Whichever digest of a chain is the smallest: the pull of a leaf keeps all above it.
func TestMake_PullOfLeafKeepsNestedIndexes(t *testing.T) {
	for _, names := range [][]string{{"a", "b", "c", "d"}, {"d", "c", "b", "a"}, {"b", "d", "a", "c"}, {"c", "a", "d", "b"}} {
		r := repo("r", []inventory.Tag{tag("t", names[0])}, man(names[3], 30))
		for i := range 3 {
			r.Manifests = append(r.Manifests, index(names[i], 30, digest(names[i+1])))
		}
		for _, keep := range []policy.Keep{{Age: ptr(7 * day)}, {NewestByPull: ptr(1)}, {Bytes: ptr(int64(5))}} {
			r := r
			r.Manifests = append(slices.Clone(r.Manifests), man("z", 20))
			p := plan.Make(plan.Input{
				Now: now, Registry: inventory.Registry{Repositories: []inventory.Repository{r}}, Uses: used{"r@" + names[3]: now},
				Policy: policy.Policy{Rules: []policy.Rule{{Name: "r", Keep: &keep}}},
			})
			if keep.Bytes != nil { // the index is used last, and within the bytes
				if gone := p.Removals(); len(gone) > 0 && gone[0].Digest != "z" {
					t.Errorf("%v, by bytes: %s", names, said(p))
				}
				continue
			}
			if gone := p.Removals(); len(gone) != 1 || gone[0].Digest != "z" {
				t.Errorf("%v, %+v: %s", names, keep, said(p))
			}
		}
	}
}

// The pull of a blob is one of each manifest of that repository which names it, and of no other.
func TestMake_PullOfBlobKeepsManifests(t *testing.T) {
	p := plan.Make(plan.Input{
		Now: now, Uses: used{"a@s100": now, "b@u7": now.Add(-8 * day)},
		Registry: inventory.Registry{Repositories: []inventory.Repository{
			repo("a", []inventory.Tag{tag("t", "i")}, index("i", 30, "x"), man("x", 30, "s100"), man("y", 30, "t5")), repo("b", nil, man("x", 30, "s100", "u7")),
		}},
		Policy: policy.Policy{Rules: []policy.Rule{{Name: "r", Keep: &policy.Keep{Age: ptr(7 * day)}}}},
	})
	if diff := cmp.Diff("y(age) x(age) | i(within_bounds) x(parent:i)", said(p)); diff != "" {
		t.Error(diff)
	}
}

// Uses spread over any graph, also one with cycles, as a slow model has them spread.
func TestMake_UsesSpreadAsModelSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "manifests")
		name := func(i int) string { return fmt.Sprintf("%c", 'a'+i) }
		r := inventory.Repository{Name: "r"}
		uses, last := used{}, make([]int, n) // days
		for i := range n {
			m := man(name(i), 50)
			for range rapid.IntRange(0, 2).Draw(t, "children") {
				if child := digest(name(rapid.IntRange(0, n-1).Draw(t, "child"))); !slices.Contains(m.Children, child) {
					m.Of, m.Children = content.Index, append(m.Children, child)
				}
			}
			r.Manifests = append(r.Manifests, m)
			r.Tags = append(r.Tags, tag("t"+name(i), name(i)))
			last[i] = 50
			if rapid.Bool().Draw(t, "used") {
				last[i] = rapid.IntRange(0, 40).Draw(t, "days")
				uses["r@"+name(i)] = now.Add(-time.Duration(last[i]) * day)
			}
		}
		want := slices.Clone(last)
		for range n { // the slow way
			for i := range n {
				for _, child := range r.Manifests[i].Children {
					want[i] = min(want[i], want[child[0]-'a'])
				}
			}
		}
		p := plan.Make(plan.Input{Now: now, Registry: inventory.Registry{Repositories: []inventory.Repository{r}}, Uses: uses})
		for _, v := range p.Verdicts {
			if got := int(v.Age / day); got != want[v.Digest[0]-'a'] {
				t.Fatalf("%s was used %d days ago, want %d", v.Digest, got, want[v.Digest[0]-'a'])
			}
		}
	})
}
