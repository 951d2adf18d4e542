package state_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/state"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 8000, time.UTC)

func ptr[T any](v T) *T { return &v }

func open(t *testing.T, path string) *state.Store {
	t.Helper()
	s, err := state.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func must[V any](v V, err error) func(*testing.T) V {
	return func(t *testing.T) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func kind(t *testing.T, err error, want fault.Kind) {
	t.Helper()
	if e, ok := errors.AsType[*fault.Error](err); !ok || e.Kind != want || e.Remedy == "" {
		t.Errorf("%v, want %s", err, want)
	}
}

// A policy with everything that one can have.
func full() policy.Policy {
	return policy.Policy{
		Comment: "why",
		Rules: []policy.Rule{
			{Name: "a", Protect: true, Match: &policy.Match{Types: []cache.Type{cache.CacheMount, cache.History}, Description: regexp.MustCompile("x+"), MinAge: ptr(time.Hour), MaxAge: ptr(2 * time.Hour), MinUsageCount: ptr(int64(0)), MaxUsageCount: ptr(int64(7)), Projects: []string{"p*"}, Daemons: []string{"d"}, Directories: []string{"/c"}}},
			{Name: "b", Extends: "a", Disabled: true},
			{Name: "c", Keep: &policy.Keep{Age: ptr(48 * time.Hour), Bytes: ptr(int64(0)), Records: ptr(int64(5)), FreeDisk: &policy.FreeDisk{LowBytes: 1, HighBytes: 2}, Scope: policy.PerType}},
		},
		Budget: policy.Budget{Time: time.Minute, Records: ptr(int64(1)), Bytes: ptr(int64(2))},
	}
}

var byText = cmp.Comparer(func(a, b *regexp.Regexp) bool {
	return (a == nil) == (b == nil) && (a == nil || a.String() == b.String())
})

func TestPolicies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	ctx := t.Context()
	configured := policy.Default(48*time.Hour, 100)
	if err := s.Configure(ctx, configured, now); err != nil {
		t.Fatal(err)
	}
	first := must(s.PolicyInForce(ctx))(t)
	if first.Version != 1 || !first.Updated.Equal(now) || len(first.Rules) != 3 {
		t.Errorf("%+v", first)
	}
	wanted := full()
	wanted.Updated, wanted.UpdatedBy = now.Add(time.Hour), "me"
	second := must(s.SetPolicy(ctx, wanted, 1))(t)
	wanted.Version = 2
	if diff := cmp.Diff(wanted, second, byText); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(wanted, must(s.PolicyInForce(ctx))(t), byText); diff != "" {
		t.Error("as it is stored:", diff)
	}
	_, err := s.SetPolicy(ctx, wanted, 1)
	kind(t, err, fault.Aborted)
	_, err = s.PolicyVersion(ctx, 9)
	kind(t, err, fault.NotFound)

	// The configuration counts again only when it has changed.
	again := open(t, path)
	if err := again.Configure(ctx, configured, now); err != nil || must(again.PolicyInForce(ctx))(t).Version != 2 {
		t.Error("an old configuration replaced what was set", err)
	}
	if err := again.Configure(ctx, policy.Default(time.Hour, 100), now); err != nil || must(again.PolicyInForce(ctx))(t).Version != 3 {
		t.Error("a new configuration does not count", err)
	}
	if old := must(again.PolicyVersion(ctx, 1))(t); len(old.Rules) != 3 || *old.Rules[0].Keep.Age != 48*time.Hour {
		t.Errorf("%+v", old)
	}
}

func TestPins(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	ctx := t.Context()
	record := policy.Pin{ID: "p1", Cache: cache.Ref{Daemon: "d"}, Record: "r", Reason: "why", Created: now, CreatedBy: "me"}
	match := policy.Pin{ID: "p2", Match: full().Rules[0].Match, Created: now.Add(time.Second), Expires: now.Add(time.Hour)}
	must(s.AddPin(ctx, record, "one"))(t)
	must(s.AddPin(ctx, match, ""))(t)
	if diff := cmp.Diff([]policy.Pin{match, record}, must(s.Pins(ctx, now))(t), byText); diff != "" {
		t.Error(diff)
	}
	same := record
	same.ID, same.Created = "p3", now.Add(time.Minute)
	if got := must(s.AddPin(ctx, same, "one"))(t); got.ID != "p1" {
		t.Errorf("the same request made pin %s", got.ID)
	}
	same.Record = "other"
	_, err := s.AddPin(ctx, same, "one")
	kind(t, err, fault.AlreadyExists)
	if left := must(s.Pins(ctx, now.Add(time.Hour)))(t); len(left) != 1 || left[0].ID != "p1" {
		t.Errorf("after the end of one: %+v", left)
	}
	if gone := must(s.RemovePin(ctx, "p1"))(t); gone.Record != "r" {
		t.Errorf("%+v", gone)
	}
	_, err = s.RemovePin(ctx, "p1")
	kind(t, err, fault.NotFound)
}

func aRun(id string, started time.Time) run.Run {
	return run.Run{ID: id, State: run.Running, Trigger: run.Demand, Started: started, RequestID: "q-" + id}
}

func verdicts(ids ...string) (all []plan.Verdict) {
	for i, id := range ids {
		all = append(all, plan.Verdict{
			Cache: cache.Ref{Daemon: "d"}, Record: cache.Record{ID: id, Type: cache.Regular, Bytes: 5, Created: now, LastUsed: now, Parents: []string{"x"}, UsageCount: 2},
			Remove: i%2 == 0, Rule: "r", Reason: plan.Age, Order: int64(i) + 1, Age: time.Hour, Frees: 5, Explain: "old",
		})
	}
	return all
}

// A run is there as it was when the process is gone, and ended if it was under way.
func TestRunsOutliveTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	ctx := context.Background()
	s, err := state.Open(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	done := aRun("a", now)
	if _, started, err := s.StartRun(ctx, done); err != nil || !started {
		t.Fatal(started, err)
	}
	for _, part := range [][]plan.Verdict{verdicts("v1", "v2"), verdicts("v3")} {
		if err := s.AddVerdicts(ctx, "a", part); err != nil {
			t.Fatal(err)
		}
	}
	done.State, done.Ended, done.PlanDigest, done.Removed = run.Partial, now.Add(time.Minute), "sha256:x", plan.Amount{Records: 2, Bytes: 10}
	done.Rules = []plan.RuleAmount{{Rule: "r", Amount: done.Removed}}
	away := fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "away", "start it")
	done.Err = away
	done.Caches = []run.OfCache{{Cache: cache.Ref{Daemon: "d"}, State: run.Succeeded, Before: 9, After: 4, Removed: done.Removed}, {Cache: cache.Ref{Directory: "/c"}, State: run.Failed, Err: away}}
	if err := s.FinishRun(ctx, done); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.StartRun(ctx, aRun("b", now.Add(time.Second))); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	again := open(t, path)
	got := must(again.RunOf(ctx, "a"))(t)
	if got.Err == nil || got.Caches[1].Err == nil {
		t.Errorf("the errors are lost: %v, %v", got.Err, got.Caches[1].Err)
	}
	if diff := cmp.Diff(done, got, cmpopts.IgnoreFields(run.Run{}, "Err"), cmpopts.IgnoreFields(run.OfCache{}, "Err")); diff != "" {
		t.Error(diff)
	}
	want := append(verdicts("v1", "v2"), verdicts("v3")...)
	if diff := cmp.Diff(want, must(again.Verdicts(ctx, "a", 0, 10))(t)); diff != "" {
		t.Error(diff)
	}
	if part := must(again.Verdicts(ctx, "a", 1, 1))(t); len(part) != 1 || part[0].Record.ID != "v2" {
		t.Errorf("%+v", part)
	}
	if cut := must(again.RunOf(ctx, "b"))(t); cut.State != run.Interrupted || cut.Ended.IsZero() || cut.Err == nil {
		t.Errorf("a run that was under way: %+v", cut)
	}
	known, started, err := again.StartRun(ctx, run.Run{ID: "c", State: run.Running, Trigger: run.Demand, Started: now, RequestID: "q-a"})
	if err != nil || started || known.ID != "a" {
		t.Errorf("the same request: %v, %v, %v", known.ID, started, err)
	}
	_, err = again.RunOf(ctx, "z")
	kind(t, err, fault.NotFound)
}

func TestRunsByPage(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	ctx := t.Context()
	for i, id := range []string{"a", "b", "c", "d", "e"} { // c and d at the same time
		if _, _, err := s.StartRun(ctx, aRun(id, now.Add(time.Duration(min(i, 3)-i/3)*time.Second))); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	var before time.Time
	var last string
	for {
		page := must(s.Runs(ctx, 2, before, last))(t)
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			ids = append(ids, r.ID)
		}
		before, last = page[len(page)-1].Started, ids[len(ids)-1]
	}
	seen := map[string]bool{}
	for _, id := range ids {
		seen[id] = true
	}
	if len(ids) != 5 || len(seen) != 5 {
		t.Errorf("pages have %v", ids)
	}
}

func TestPlansAreTakenOnce(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	ctx := t.Context()
	save := func(digest string) {
		if err := s.SavePlan(ctx, run.Plan{Plan: &plan.Plan{}, Digest: digest, Expires: now.Add(time.Minute)}); err != nil {
			t.Fatal(err)
		}
	}
	save("a")
	must(s.CheckPlan(ctx, "a", now))(t)
	for range 2 { // once more when it was returned
		if err := s.TakePlan(ctx, "a", now); err != nil {
			t.Fatal(err)
		}
		kind(t, s.TakePlan(ctx, "a", now), fault.Aborted)
		s.ReturnPlan("a")
	}
	save("b")
	kind(t, s.TakePlan(ctx, "b", now.Add(time.Hour)), fault.Aborted)
	kind(t, s.TakePlan(ctx, "c", now), fault.NotFound)
	for i := range 40 {
		save(fmt.Sprint("n", i))
	}
	_, err := s.PlanOf(ctx, "a")
	kind(t, err, fault.NotFound) // memory is bounded
}

// A sample every few minutes is kept of each cache, for a little more than a week.
func TestSamples(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	start := time.Now().Add(-10 * 24 * time.Hour).Truncate(time.Second)
	a, b := cache.Ref{Daemon: "a"}, cache.Ref{Directory: "/b"}
	for i := range 10 * 24 * 60 { // each minute of ten days
		if i%60 == 0 || i > 10*24*60-60 {
			if err := s.AddSample(t.Context(), a, start.Add(time.Duration(i)*time.Minute), int64(i), 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.AddSample(t.Context(), b, start, 1, 1); err != nil { // it is not a's
		t.Fatal(err)
	}
	all, err := s.Samples(t.Context(), a)
	if err != nil || len(all) < 8*24 || len(all) > 8*24+13 {
		t.Fatalf("%d samples, %v", len(all), err)
	}
	for i := 1; i < len(all); i++ {
		if gap := all[i].Time.Sub(all[i-1].Time); gap < 5*time.Minute {
			t.Errorf("samples %d and %d are %s apart", i-1, i, gap)
		}
	}
}
