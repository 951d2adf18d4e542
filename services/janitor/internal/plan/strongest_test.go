package plan_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// A nightly build that became a release stays, whichever rule comes first.
func TestMake_StrongestKeepOfAnyTagWins(t *testing.T) {
	nightly := policy.Rule{Name: "nightly", Match: &policy.Match{Tags: policy.Globs("nightly-*")}, Keep: &policy.Keep{Age: ptr(3 * day)}}
	tags := policy.Match{Tags: policy.Globs("v*")}
	for name, c := range map[string]struct {
		other policy.Rule
		want  string
	}{
		"protected":      {policy.Rule{Name: "v", Match: &tags, Protect: true}, "| x(protected)"},
		"without bounds": {policy.Rule{Name: "v", Match: &tags}, "| x(within_bounds)"},
		"longer":         {policy.Rule{Name: "v", Match: &tags, Keep: &policy.Keep{Age: ptr(60 * day)}}, "| x(within_bounds)"},
		"newest":         {policy.Rule{Name: "v", Match: &tags, Keep: &policy.Keep{NewestByPush: ptr(1)}}, "| x(newest)"},
		"shorter":        {policy.Rule{Name: "v", Match: &tags, Keep: &policy.Keep{Age: ptr(day)}}, "x(age) |"},
		"none":           {policy.Rule{Name: "v", Match: &policy.Match{Tags: policy.Globs("w*")}, Protect: true}, "| x(no_rule)"},
	} {
		for order, rules := range map[string][]policy.Rule{"first": {nightly, c.other}, "last": {c.other, nightly}} {
			got := said(plan.Make(plan.Input{
				Now: now, Policy: policy.Policy{Rules: rules},
				Registry: inventory.Registry{Repositories: []inventory.Repository{
					repo("a", []inventory.Tag{tag("nightly-1", "x"), tag("v1.0", "x")}, man("x", 30)),
				}},
			}))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s, nightly %s: %s", name, order, diff)
			}
		}
	}
}

// A link to a repository is another name of it, and a rule that keeps it by either name does.
func TestMake_StrongestKeepOfAnyNameOfRepositoryWins(t *testing.T) {
	r := repo("cache/prod", []inventory.Tag{tag("v1", "x")}, man("x", 30))
	r.Aliases = []string{"prod"}
	got := said(plan.Make(plan.Input{
		Now: now, Registry: inventory.Registry{Repositories: []inventory.Repository{r}},
		Policy: policy.Policy{Rules: []policy.Rule{
			{Name: "cache", Match: &policy.Match{Repositories: policy.Globs("cache/**")}, Keep: &policy.Keep{Age: ptr(day)}},
			{Name: "prod", Match: &policy.Match{Repositories: policy.Globs("prod")}, Protect: true},
		}},
	}))
	if diff := cmp.Diff("| x(protected)", got); diff != "" {
		t.Error(diff)
	}
}

func TestMake_MaxBytesKeepsNewest(t *testing.T) {
	for _, days := range []int{1, 30} {
		got := said(plan.Make(plan.Input{
			Now: now,
			Policy: policy.Policy{
				Rules: []policy.Rule{{Name: "r", Keep: &policy.Keep{Age: ptr(7 * day), NewestByPush: ptr(2)}}}, MaxBytes: ptr(int64(5)),
			},
			Registry: inventory.Registry{Repositories: []inventory.Repository{
				repo("a", nil, man("x", days+1, "s100"), man("y", days, "t100"), man("z", days-1, "u100")),
			}},
		}))
		want := map[int]string{1: "x(bytes) | y(within_bounds) z(within_bounds)", 30: "x(age) | y(newest) z(newest)"}[days]
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d days old: %s", days, diff)
		}
	}
}

// What cannot be read may name all that has no tag, also what another index that goes lists.
func TestMake_KeepsUntaggedBesideUnreadableManifest(t *testing.T) {
	r := repo("a", []inventory.Tag{tag("v1", "bad"), tag("old", "i"), tag("other", "tagged"), tag("sbom", "tagged-of-bad")},
		referrer("tagged-of-bad", 30, "bad"), man("child", 30), index("i", 30, "part"), man("part", 30), man("tagged", 30), referrer("of-bad", 30, "bad"))
	r.Doubts = []inventory.Doubt{{Digest: "bad", Bytes: 100, Linked: now, Message: "cannot be read"}}
	got := said(plan.Make(plan.Input{
		Now: now, Registry: inventory.Registry{Repositories: []inventory.Repository{r}},
		Policy: policy.Policy{Rules: []policy.Rule{{Name: "r", Keep: &policy.Keep{Age: ptr(7 * day)}}}},
	}))
	want := "i(age) tagged(age) | child(doubt) of-bad(parent:bad) part(doubt) tagged-of-bad(parent:bad) bad(doubt)"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// An index is refused when a manifest that it lists is gone, of whichever type it says that this
// is: all that it lists lives with it.
func TestMake_KeepsManifestsThatIndexListsUnderOtherTypes(t *testing.T) {
	odd := index("i", 1)
	odd.Blobs = man("", 0, "p1").Blobs
	got := said(plan.Make(plan.Input{
		Now: now, Registry: inventory.Registry{Repositories: []inventory.Repository{
			repo("a", []inventory.Tag{tag("v1", "i")}, odd, man("p1", 30)),
		}},
		Policy: policy.Policy{Rules: []policy.Rule{{Name: "r", Keep: &policy.Keep{Age: ptr(7 * day)}}}},
	}))
	if diff := cmp.Diff("| i(within_bounds) p1(parent:i)", got); diff != "" {
		t.Error(diff)
	}
}

// used says when blobs and manifests were pulled.
type used map[string]time.Time

func (u used) Last(repository string, d digest, _ []string) (pushed, pulled time.Time) {
	return time.Time{}, u[repository+"@"+string(d)]
}
func (u used) Away(time.Time) time.Duration { return 0 }
