package plan_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

const day = 24 * time.Hour

// man is an image that was pushed some days ago, of blobs like "a10", which take 10 bytes; its
// own bytes are 1.
func man(digest string, days int, blobs ...string) inventory.Manifest {
	m := inventory.Manifest{Manifest: &content.Manifest{}, Pushed: now.Add(-time.Duration(days) * day)}
	m.Digest, m.Of, m.Bytes = content.Digest(digest), content.Image, 1
	for _, b := range blobs {
		var size int64
		_, _ = fmt.Sscanf(b[1:], "%d", &size)
		m.Blobs = append(m.Blobs, content.NewBlob(content.Digest(b), size))
	}
	return m
}

// index is one of other manifests.
func index(digest string, days int, children ...content.Digest) inventory.Manifest {
	m := man(digest, days)
	m.Of, m.Children = content.Index, children
	return m
}

// referrer refers to a subject.
func referrer(digest string, days int, subject content.Digest) inventory.Manifest {
	m := man(digest, days)
	m.Of, m.Subject = content.Referrer, subject
	return m
}

func tag(name, digest string) inventory.Tag {
	return inventory.Tag{Name: name, Digest: content.Digest(digest)}
}

func repo(name string, tags []inventory.Tag, manifests ...inventory.Manifest) inventory.Repository {
	return inventory.Repository{Name: name, Tags: tags, Manifests: manifests}
}

// said writes a plan as "a(age) | b(parent:c)".
func said(p *plan.Plan) string {
	var goes, stays []string
	for _, v := range p.Verdicts {
		text := fmt.Sprintf("%s(%s", v.Digest, v.Reason)
		if v.KeptBy != "" {
			text += ":" + v.KeptBy
		}
		text += ")"
		if v.Explain == "" {
			text += " without a word"
		}
		if v.Remove {
			goes = append(goes, text)
		} else {
			stays = append(stays, text)
		}
	}
	return strings.TrimSpace(strings.Join(goes, " ") + " | " + strings.Join(stays, " "))
}

func TestMake(t *testing.T) {
	week := &policy.Keep{Age: ptr(7 * day)}
	all := func(k *policy.Keep) []policy.Rule { return []policy.Rule{{Name: "r", Keep: k}} }
	hex := strings.Repeat("0a", 32)
	for name, c := range map[string]struct {
		rules []policy.Rule
		repos []inventory.Repository
		max   *int64
		budgt policy.Budget
		want  string
		frees int64
	}{
		"by age, the oldest first, exactly at the bound stays": {
			rules: all(week), repos: []inventory.Repository{repo("a", nil, man("x", 8), man("y", 9), man("z", 7))},
			want: "y(age) x(age) | z(within_bounds)", frees: 2,
		},
		"the first rule that matches decides": {
			rules: []policy.Rule{
				{Name: "cache", Match: &policy.Match{Repositories: policy.Globs("cache/**")}, Keep: week}, {Name: "untagged", Match: &policy.Match{Tagging: policy.Untagged}, Keep: week},
			},
			repos: []inventory.Repository{
				repo("app", []inventory.Tag{tag("v1", "old")}, man("old", 30), man("untagged", 30)),
				repo("cache/app", []inventory.Tag{tag("main", "c")}, man("c", 30)),
			},
			want: "untagged(age) c(age) | old(no_rule)", frees: 2,
		},
		"protected by tag": {
			rules: []policy.Rule{{Name: "p", Match: &policy.Match{Tags: policy.Globs("v*")}, Protect: true}, {Name: "r", Keep: week}},
			repos: []inventory.Repository{repo("a", []inventory.Tag{tag("v1", "x"), tag("main", "y")}, man("x", 30), man("y", 30))},
			want:  "y(age) | x(protected)", frees: 1,
		},
		"blobs that others hold are not freed, and those of two that go are freed with the second": {
			rules: all(week), repos: []inventory.Repository{repo("a", nil, man("x", 10, "s100", "t7"), man("y", 9, "s100", "u5"), man("z", 1, "u5"))},
			want: "x(age) y(age) | z(within_bounds)", frees: 1 + 7 + 1 + 100,
		},
		"parts of an index live and die with it": {
			rules: all(week), repos: []inventory.Repository{repo("a", []inventory.Tag{tag("t", "live"), tag("u", "dead")},
				index("live", 1, "p", "both"), man("p", 30), man("both", 30), index("dead", 30, "both", "q"), man("q", 30))},
			want: "dead(age) q(family) | both(parent:live) live(within_bounds) p(parent:live)", frees: 2,
		},
		"a part that was pushed lately is a use of the whole": {
			rules: all(week), repos: []inventory.Repository{repo("a", nil, index("i", 30, "p"), man("p", 1))},
			want: "| i(within_bounds) p(parent:i)",
		},
		"a part with a tag of its own has a life of its own": {
			rules: []policy.Rule{{Name: "p", Match: &policy.Match{Tags: policy.Globs("keep")}, Protect: true}, {Name: "r", Keep: week}},
			repos: []inventory.Repository{repo("a", []inventory.Tag{tag("keep", "p"), tag("amd64", "q")}, index("i", 30, "p", "q"), man("p", 30), man("q", 40))},
			want:  "i(age) q(family) | p(protected)", frees: 2,
		},
		"a tagged part beyond its bound stays for the index": {
			rules: all(week), repos: []inventory.Repository{repo("a", []inventory.Tag{tag("i", "i"), tag("amd64", "q")}, index("i", 30, "q"), man("q", 40), man("x", 40)),
				{Name: "b", Manifests: []inventory.Manifest{index("i", 1, "q"), man("q", 40)}}},
			want: "x(age) i(age) q(family) | i(within_bounds) q(parent:i)", frees: 1,
		},
		"what refers to a subject lives and dies with it; without it by its own age": {
			rules: all(week), repos: []inventory.Repository{repo("a", []inventory.Tag{tag("live", "l"), tag("dead", "d")},
				man("d", 30), man("l", 1), referrer("of-d", 1, "d"), referrer("of-l", 30, "l"), referrer("of-none", 30, "gone"))},
			want: "d(age) of-d(family) of-none(age) | l(within_bounds) of-l(parent:l)", frees: 3,
		},
		"cosign's tags are no life of their own": {
			rules: all(week), repos: []inventory.Repository{repo("a", []inventory.Tag{tag("sha256-"+hex+".sig", "sig")}, man("sha256:"+hex, 30), man("sig", 1))},
			want: "sha256:" + hex + "(age) sig(family) |", frees: 2,
		},
		"the newest stay whatever their age": {
			rules: all(&policy.Keep{Age: ptr(7 * day), NewestByPush: ptr(2)}), repos: []inventory.Repository{repo("a", nil, man("x", 10), man("y", 9), man("z", 8)), repo("b", nil, man("w", 50))},
			want: "x(age) | y(newest) z(newest) w(newest)", frees: 1,
		},
		"only the newest stay": {
			rules: all(&policy.Keep{NewestByPush: ptr(1)}), repos: []inventory.Repository{repo("a", nil, man("x", 3), man("y", 2), man("z", 1))},
			want: "x(surplus) y(surplus) | z(newest)", frees: 2,
		},
		"bytes of each repository, the longest unused first": {
			rules: all(&policy.Keep{Bytes: ptr(int64(120))}), repos: []inventory.Repository{repo("a", nil, man("x", 3, "s100", "t50"), man("y", 2, "s100"), man("z", 4, "s100"))},
			want: "z(bytes) x(bytes) | y(within_bounds)", frees: 1 + 1 + 50,
		},
		"bytes of the registry, but not of what no rule matches": {
			rules: []policy.Rule{{Name: "cache", Match: &policy.Match{Repositories: policy.Globs("cache/*")}, Keep: week}}, max: ptr(int64(60)),
			repos: []inventory.Repository{repo("app", nil, man("x", 50, "b50")), repo("cache/c", nil, man("y", 1, "c50"), man("z", 2, "d50"))},
			want:  "z(bytes) y(bytes) | x(no_rule)", frees: 102,
		},
		"a budget cuts the plan": {
			rules: all(week), budgt: policy.Budget{Bytes: ptr(int64(15))}, repos: []inventory.Repository{repo("a", nil, man("x", 30, "a10"), man("y", 20, "b10"))},
			want: "x(age) | y(budget)", frees: 11,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := plan.Make(plan.Input{Registry: inventory.Registry{Repositories: c.repos}, Now: now, Policy: policy.Policy{Rules: c.rules, MaxBytes: c.max, Budget: c.budgt}})
			if diff := cmp.Diff(c.want, said(p)); diff != "" {
				t.Error(diff)
			}
			if p.Removes.Bytes != c.frees {
				t.Errorf("frees %d, want %d", p.Removes.Bytes, c.frees)
			}
		})
	}
}

// A plan for some repositories leaves the others alone, and frees nothing that they hold.
func TestWithin(t *testing.T) {
	in := plan.Input{
		Registry: inventory.Registry{
			Repositories: []inventory.Repository{repo("a", nil, man("x", 9, "s100", "t5")), repo("b", nil, man("y", 9, "s100"))},
			Orphans:      []inventory.Orphan{{Digest: "o", Bytes: 7}},
		},
		Policy: policy.Policy{Rules: []policy.Rule{{Name: "r", Keep: &policy.Keep{Age: ptr(7 * day)}}}}, Now: now,
		Within: func(repository string) bool { return repository == "a" },
	}
	if p := plan.Make(in); said(p) != "x(age) |" || p.Removes.Bytes != 6 || !p.RemovesAll {
		t.Errorf("%s, %+v", said(p), p.Removes)
	}
}

// What is no manifest of use: each with its verdict.
func TestOddities(t *testing.T) {
	p := plan.Make(plan.Input{
		Registry: inventory.Registry{
			Repositories: []inventory.Repository{
				{
					Name: "a", Tags: []inventory.Tag{{Name: "nowhere", Moved: now.Add(-48 * time.Hour)}},
					Doubts: []inventory.Doubt{{Digest: "empty", Linked: now.Add(-48 * time.Hour), Message: "is empty"}, {Digest: "bad", Bytes: 5, Message: "is no JSON"}},
				},
				{Name: "b", Uploads: []inventory.Upload{{ID: "old", Bytes: 9, Changed: now.Add(-25 * time.Hour)}, {ID: "new", Changed: now.Add(-time.Hour)}}},
			},
			Orphans: []inventory.Orphan{
				{Digest: "o2", Bytes: 20, Changed: now.Add(-48 * time.Hour)},
				{Digest: "o1", Bytes: 10, Changed: now.Add(-48 * time.Hour), Repositories: []string{"b"}},
				{Digest: "fresh", Bytes: 30, Changed: now.Add(-time.Hour)},
				{Digest: "near", Bytes: 40, Changed: now.Add(-48 * time.Hour), Repositories: []string{"a", "b"}},
			},
		},
		Policy: policy.Default(7 * day), Now: now,
	})
	want := "empty(dangling) nowhere(dangling) old(abandoned) o1(unreached) o2(unreached) | bad(doubt) new(grace) fresh(grace) near(doubt)"
	if diff := cmp.Diff(want, said(p)); diff != "" {
		t.Error(diff)
	}
	if p.Removes != (plan.Amount{Manifests: 1, Blobs: 2, Bytes: 39, Uploads: 1}) || len(p.Warnings) != 1 || p.Doubts != 1 {
		t.Errorf("%+v, %v", p.Removes, p.Warnings)
	}
}
