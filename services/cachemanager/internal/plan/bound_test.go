package plan_test

import (
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
)

// While builds hold more than a bound, it cannot be reached: what they do not hold does not all go in
// vain, and has the bound for itself.
func TestBound_LeavesWhatCannotHelp(t *testing.T) {
	busy := func(r *cache.Record) { r.InUse = true }
	size := func(limit int64) policy.Policy {
		return rules(policy.Rule{Name: "size", Keep: &policy.Keep{Bytes: &limit}})
	}
	for name, c := range map[string]struct {
		records []cache.Record
		want    string
	}{
		"the bulk is held": {
			[]cache.Record{rec("base", 9, 90), with(rec("step", 0, 30, "base"), busy), rec("a", 3, 20), rec("b", 2, 20)},
			"| base(child:step) a(no_help) b(no_help) step(in_use)",
		},
		"the rest has the bound for itself": {
			[]cache.Record{with(rec("step", 0, 120), busy), rec("a", 4, 60), rec("b", 3, 60), rec("c", 2, 30)},
			"a(bytes) | b(no_help) c(no_help) step(in_use)",
		},
		"a part is held": {
			[]cache.Record{with(rec("step", 0, 80), busy), rec("a", 3, 20), rec("b", 2, 20)},
			"a(bytes) | b(within_bounds) step(in_use)",
		},
	} {
		p := plan.Make(plan.Input{Now: now, Listings: one(c.records...), Policy: size(100)})
		if got := said(p); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, c.want)
		}
		for _, v := range p.Verdicts {
			if v.Reason == plan.NoHelp && v.Explain != `builds hold 120 B, more than the 100 B of rule "size": its removal would not help` {
				t.Errorf("%s: %s", name, v.Explain)
			}
		}
	}
}

// A record counts as in use for several reasons, and the verdict names the one.
func TestInUse_NamesWhoHoldsIt(t *testing.T) {
	for hold, want := range map[cache.Hold]string{
		cache.HeldByBuild: "a build uses it", cache.HeldWithoutBuild: "no build runs", cache.HeldByLastUse: "used 0.3s ago",
		cache.HeldByListing: "0.3s ago, by the listing itself", cache.HeldByHistory: "pinned in the daemon's history",
	} {
		r := with(rec("a", 0, 1), func(r *cache.Record) { r.InUse, r.Hold, r.LastUsed = true, hold, now.Add(-300*time.Millisecond) })
		p := plan.Make(plan.Input{Now: now, Listings: one(r, rec("base", 1, 1)), Policy: policy.Default(0, 0)})
		for _, v := range p.Verdicts {
			if v.Record.ID == "a" && !strings.Contains(v.Explain, want) {
				t.Errorf("%d: %s", hold, v.Explain)
			}
		}
	}
}
