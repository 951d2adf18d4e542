package plan_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

func TestMake_Signatures(t *testing.T) {
	hex := strings.Repeat("0a", 32)
	subject, other := "sha256:"+hex, "sha256:"+strings.Repeat("0b", 32)
	named := strings.NewReplacer(subject, "SUBJECT", other, "OTHER")
	untagged := policy.Rule{Name: "untagged", Match: &policy.Match{Tagging: policy.Untagged}, Keep: &policy.Keep{Age: ptr(7 * day)}}
	all := policy.Rule{Name: "all", Keep: &policy.Keep{Age: ptr(7 * day)}}
	sig := func(on string) inventory.Tag { return tag("sha256-"+strings.TrimPrefix(on, "sha256:")+".sig", "sig") }
	plain := tag("sha256-"+hex, "list")
	for name, c := range map[string]struct {
		rules  []policy.Rule
		budget policy.Budget
		repos  []inventory.Repository
		want   string
	}{
		"of a subject that is gone, by the rule on what has no tag": {
			rules: []policy.Rule{untagged}, repos: []inventory.Repository{repo("a", []inventory.Tag{sig(subject)}, man("sig", 30))},
			want: "sig(age) |",
		},
		"of a subject that is gone, used lately": {
			rules: []policy.Rule{untagged}, repos: []inventory.Repository{repo("a", []inventory.Tag{sig(subject)}, man("sig", 1))},
			want: "| sig(within_bounds)",
		},
		"of a subject that is gone, protected by its tag": {
			rules: []policy.Rule{{Name: "p", Match: &policy.Match{Tags: policy.Globs("*.sig")}, Protect: true}, untagged},
			repos: []inventory.Repository{repo("a", []inventory.Tag{sig(subject)}, man("sig", 30))},
			want:  "| sig(protected)",
		},
		"of a subject in another repository": {
			rules: []policy.Rule{untagged}, repos: []inventory.Repository{repo("app", []inventory.Tag{tag("v1", subject)}, man(subject, 30)),
				repo("signatures", []inventory.Tag{sig(subject)}, man("sig", 30))},
			want: "| SUBJECT(no_rule) sig(parent:SUBJECT)",
		},
		"of a subject in another repository that cannot be read": {
			rules: []policy.Rule{untagged}, repos: []inventory.Repository{
				{Name: "app", Doubts: []inventory.Doubt{{Digest: content.Digest(subject), Bytes: 1}}},
				repo("signatures", []inventory.Tag{sig(subject)}, man("sig", 30)),
			},
			want: "| sig(parent:SUBJECT) SUBJECT(doubt) without a word",
		},
		"a list of referrers without a suffix": {
			rules: []policy.Rule{untagged}, repos: []inventory.Repository{repo("a", []inventory.Tag{plain}, index("list", 30))},
			want: "list(age) |",
		},
		"an image that people tagged by its digest": {
			rules: []policy.Rule{untagged}, repos: []inventory.Repository{repo("a", []inventory.Tag{tag("sha256-"+hex, subject), tag("sha256-"+other[7:], "copy")},
				man(subject, 30), man("copy", 30))},
			want: "| copy(no_rule) SUBJECT(no_rule)",
		},
		"of one another": {
			rules: []policy.Rule{all}, repos: []inventory.Repository{repo("a",
				[]inventory.Tag{tag("sha256-"+hex+".sig", other), tag("sha256-"+other[7:]+".sig", subject)}, man(subject, 30), man(other, 30))},
			want: "SUBJECT(age) OTHER(family) |",
		},
		"a budget does not part them from their subject": {
			rules: []policy.Rule{all}, budget: policy.Budget{Manifests: ptr(int64(2))},
			repos: []inventory.Repository{repo("a", []inventory.Tag{sig(subject)}, man("x", 40), man(subject, 30), man("sig", 30), man("z", 20))},
			want:  "x(age) | SUBJECT(budget) sig(budget) z(budget)",
		},
		"a family that is larger than the budget lets others go": {
			rules: []policy.Rule{all}, budget: policy.Budget{Manifests: ptr(int64(1))},
			repos: []inventory.Repository{repo("a", []inventory.Tag{sig(subject)}, man(subject, 30), man("sig", 30), man("z", 20))},
			want:  "z(age) | SUBJECT(budget) sig(budget)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := plan.Make(plan.Input{
				Registry: inventory.Registry{Repositories: c.repos}, Now: now, Policy: policy.Policy{Rules: c.rules, Budget: c.budget},
			})
			if diff := cmp.Diff(c.want, named.Replace(said(p))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// leased holds leases on manifests by their digests.
type leased map[string]string

func (l leased) Lease(repository string, d content.Digest, _ []string) string {
	return l[repository+"@"+string(d)]
}
func (l leased) Export(string) string { return "" }

// A build that uses a part of an index, or a signature, uses the whole family.
func TestMake_LeaseOfPartKeepsWhole(t *testing.T) {
	p := plan.Make(plan.Input{
		Now: now, Leases: leased{"a@p": "one", "a@r": "two"},
		Registry: inventory.Registry{Repositories: []inventory.Repository{
			repo("a", nil, index("i", 30, "p"), man("p", 30), man("s", 30), referrer("r", 30, "s"), man("x", 30)),
		}},
		Policy: policy.Policy{Rules: []policy.Rule{{Name: "r", Keep: &policy.Keep{Age: ptr(7 * day)}}}},
	})
	if diff := cmp.Diff("x(age) | i(leased:one) p(leased:one) r(leased:two) s(leased:two)", said(p)); diff != "" {
		t.Error(diff)
	}
}
