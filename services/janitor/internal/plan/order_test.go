package plan_test

import (
	"iter"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// seen is a manifest of whose push the storage tells nothing, made some days ago; -1: that is not
// known.
func seen(digest string, madeDays int) inventory.Manifest {
	m := man(digest, 0, digest+"10")
	m.Pushed = time.Time{}
	if madeDays >= 0 {
		m.Created = now.Add(-time.Duration(madeDays) * day)
	}
	return m
}

// firstSeen is when manifests were seen first, by digest; the others were seen two days ago.
type firstSeen map[content.Digest]time.Time

func (f firstSeen) Last(_ string, d content.Digest, _ []string) (pushed, pulled time.Time) {
	if at, is := f[d]; is {
		return at, time.Time{}
	}
	return now.Add(-2 * day), time.Time{}
}

func (firstSeen) Away(time.Time) time.Duration { return 0 }

func (firstSeen) Pulls(string) iter.Seq2[content.Digest, time.Time] {
	return func(func(content.Digest, time.Time) bool) {}
}

// Of manifests that were seen first at the same moment those are the newest that were made last;
// where that is not known, all stay that may be. What was seen later is newer, whenever it was made.
func TestMake_OrderOfWhatWasSeenFirst(t *testing.T) {
	one := func(keep policy.Keep) policy.Policy {
		return policy.Policy{Rules: []policy.Rule{{Name: "r", Keep: &keep}}}
	}
	newest := one(policy.Keep{NewestByPush: ptr(1)})
	later := firstSeen{"a": now.Add(-day)}
	listed := seen("y", -1)
	listed.Of, listed.Children = content.Index, []content.Digest{"yc"}
	for name, c := range map[string]struct {
		manifests []inventory.Manifest
		uses      firstSeen
		policy    policy.Policy
		want      string
		warned    bool
	}{
		"by when they were made": {
			manifests: []inventory.Manifest{seen("a", 3), seen("b", 1), seen("c", 2)}, policy: newest,
			want: "a(surplus) c(surplus) | b(newest)",
		},
		"it is not known of one": {
			manifests: []inventory.Manifest{seen("a", 3), seen("b", 1), seen("c", -1)}, policy: newest,
			want: "| a(newest) b(newest) c(newest)", warned: true,
		},
		"made at the same time, as reproducible builds are": {
			manifests: []inventory.Manifest{seen("a", 3), seen("b", 1), seen("c", 1)}, policy: newest,
			want: "a(surplus) | b(newest) c(newest)", warned: true,
		},
		"seen later": {
			manifests: []inventory.Manifest{seen("a", 9), seen("b", 1), seen("c", 2)}, uses: later, policy: newest,
			want: "b(surplus) c(surplus) | a(newest)",
		},
		"an index was made when what it lists was": {
			manifests: []inventory.Manifest{seen("x", 2), listed, seen("yc", 1)}, policy: newest,
			want: "x(surplus) | y(newest) yc(parent:y)",
		},
		"the newest by pull, and none was pulled": {
			manifests: []inventory.Manifest{seen("a", 3), seen("b", 1)}, policy: one(policy.Keep{NewestByPull: ptr(1)}),
			want: "a(surplus) | b(newest)",
		},
		"bytes, by when they were made": {
			manifests: []inventory.Manifest{seen("a", 1), seen("b", 3)}, policy: one(policy.Keep{Bytes: ptr(int64(12))}),
			want: "b(bytes) | a(within_bounds)",
		},
		"bytes, and it is not known which goes first": {
			manifests: []inventory.Manifest{seen("a", -1), seen("b", -1), seen("c", -1)}, uses: later, policy: one(policy.Keep{Bytes: ptr(int64(12))}),
			want: "| a(within_bounds) b(within_bounds) c(within_bounds)", warned: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := plan.Make(plan.Input{
				Registry: inventory.Registry{Repositories: []inventory.Repository{repo("app", nil, c.manifests...)}},
				Policy:   c.policy, Now: now, Uses: c.uses,
			})
			if said(p) != c.want || (len(p.Warnings) > 0) != c.warned {
				t.Errorf("%s, want %s; warnings %q", said(p), c.want, p.Warnings)
			}
		})
	}
}

// What has a time that cannot be, as after a backup was restored without its times, does not age by
// it.
func TestMake_TimesThatCannotBe(t *testing.T) {
	epoch := time.Unix(0, 0)
	m := man("a", 0)
	m.Pushed = epoch
	in := plan.Input{
		Registry: inventory.Registry{
			Repositories: []inventory.Repository{{
				Name: "app", Manifests: []inventory.Manifest{m}, Uploads: []inventory.Upload{{ID: "u", Changed: epoch}},
				Doubts: []inventory.Doubt{{Digest: "empty", Message: "is empty", Linked: epoch}}, Dangling: []inventory.Link{{Digest: "l", Linked: epoch}},
			}},
			Orphans: []inventory.Orphan{{Digest: "o", Bytes: 9, Changed: epoch}},
		},
		Policy: policy.Policy{Rules: []policy.Rule{{Name: "r", Keep: &policy.Keep{Age: ptr(7 * day), PushAge: ptr(7 * day)}}}, BlobGrace: day, UploadAge: day}, Now: now,
	}
	if p := plan.Make(in); len(p.Removals()) > 0 {
		t.Error(said(p))
	}
	in.Uses = firstSeen{"a": now.Add(-8 * day)}
	if p := plan.Make(in); p.Removes.Manifests != 1 {
		t.Errorf("eight days after it was seen first: %s", said(p))
	}
}
