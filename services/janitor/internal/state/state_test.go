package state_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/growth"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/lease"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
	"github.com/kilnbuild/kiln/services/janitor/internal/state"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 8000, time.UTC)

const day = 24 * time.Hour

func open(t *testing.T, path string) *state.Store {
	t.Helper()
	s, err := state.Open(context.Background(), path)
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

func ptr[T any](v T) *T { return &v }

// A policy comes back as it was, with everything that one can have.
func TestPolicyComesBack(t *testing.T) {
	full := policy.Policy{
		Comment: "why", MaxBytes: ptr(int64(7)), BlobGrace: time.Hour, Quarantine: 2 * time.Hour, UploadAge: 3 * time.Hour, MaxBuildTime: 4 * time.Hour,
		Budget: policy.Budget{Time: time.Minute, Manifests: ptr(int64(1)), Bytes: ptr(int64(2))},
		Rules: []policy.Rule{
			{Name: "a", Protect: true, Match: &policy.Match{Repositories: policy.Globs("a/**"), Tags: policy.Globs("v*"), Digests: []content.Digest{"sha256:x"}, Tagging: policy.Tagged, Kinds: []content.Kind{content.Cache}}},
			{Name: "b", Disabled: true, Keep: &policy.Keep{Age: ptr(day), PushAge: ptr(day), CreateAge: ptr(day), NewestByPush: ptr(3), NewestByPull: ptr(0), Bytes: ptr(int64(9)), DropEmpty: true}},
		},
	}
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	ctx := t.Context()
	if err := s.Configure(ctx, full, now); err != nil {
		t.Fatal(err)
	}
	got := must(s.PolicyInForce(ctx))(t)
	if got.Version != 1 || !got.Updated.Equal(now) {
		t.Errorf("%+v", got)
	}
	if diff := cmp.Diff(full, got, cmpopts.IgnoreFields(policy.Policy{}, "Version", "Updated"), cmp.Comparer(func(a, b policy.Glob) bool { return a.String() == b.String() })); diff != "" {
		t.Error(diff)
	}
	if err := s.Configure(ctx, full, now.Add(day)); err != nil || must(s.PolicyInForce(ctx))(t).Version != 1 {
		t.Errorf("the same again: %v", err)
	}
}

// A run and its verdicts come back; one that an earlier process left is INTERRUPTED, and can
// be taken up, also one of another host.
func TestRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	ctx := t.Context()
	r := run.Run{
		ID: "1", State: run.Running, Trigger: run.Demand, Started: now, PolicyVersion: 2, PlanDigest: "sha256:p", Predicted: plan.Amount{Manifests: 1, Blobs: 2, Bytes: 3, Uploads: 4},
		Waiting: plan.Amount{Bytes: 5}, Rules: []plan.RuleAmount{{Rule: "a"}}, Repositories: []run.RepositoryAmount{{Repository: "x", Amount: plan.Amount{Bytes: 6}}},
		Caller: "joe", TraceID: "t", RequestID: "q", Progress: run.Progress{Phase: run.Settle, Done: 1, Total: 2, Began: now}, Reach: run.Storage, Resumed: 1, Verified: 9, Broken: 8,
	}
	if _, started, err := s.StartRun(ctx, r); err != nil || !started {
		t.Fatal(err)
	}
	if same, started, err := s.StartRun(ctx, run.Run{ID: "2", RequestID: "q", State: run.Running, Trigger: run.Demand, Reach: run.API}); err != nil || started || same.ID != "1" {
		t.Errorf("%+v, %t, %v", same, started, err)
	}
	v := plan.Verdict{Repository: "x", Kind: plan.Manifest, Digest: "sha256:d", Tags: []string{"t"}, Of: content.Index, Bytes: 1, Pushed: now, Remove: true, Rule: "a", Reason: plan.Age, Explain: "old", Order: 1, Age: day, Frees: 5}
	if err := s.AddVerdicts(ctx, "1", []plan.Verdict{v, {Kind: plan.Blob, Digest: "sha256:b", Reason: plan.Unreached, Remove: true}}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(v, must(s.Verdicts(ctx, "1", 0, 1))(t)[0], cmpopts.IgnoreUnexported(plan.Verdict{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(r, must(s.RunOf(ctx, "1"))(t)); diff != "" {
		t.Error(diff)
	}
	again := open(t, path)
	if left := must(again.RunOf(ctx, "1"))(t); left.State != run.Interrupted || left.Err == nil || left.Ended.IsZero() {
		t.Errorf("%+v", left)
	}
	r.Resumed = 2
	for _, id := range []string{"1", "of another host"} {
		r.ID = id
		if err := again.TakeUp(ctx, r); err != nil {
			t.Fatal(err)
		}
		if up := must(again.RunOf(ctx, id))(t); up.State != run.Running || up.Resumed != 2 || !up.Ended.IsZero() {
			t.Errorf("%+v", up)
		}
	}
	_, err := again.RunOf(ctx, "none")
	kind(t, err, fault.NotFound)
}

// Uses only ever prolong life, whatever their order; and time in which nobody listened does
// not count.
func TestUses(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	ctx := t.Context()
	use := func(name lastuse.Name, push bool, at time.Time) lastuse.Use {
		return lastuse.Use{Repository: "r", Name: name, Push: push, At: at}
	}
	d := lastuse.ByDigest("sha256:x")
	for i, step := range []struct {
		uses []lastuse.Use
		news int
	}{
		{[]lastuse.Use{use(d, false, now), use(d, true, now.Add(-day)), use(lastuse.ByTag("t"), false, now.Add(time.Hour))}, 3},
		{[]lastuse.Use{use(d, false, now), use(d, false, now.Add(-day)), use(d, true, now.Add(-2*day))}, 0}, // again, and late
		{[]lastuse.Use{use(d, true, now.Add(time.Minute))}, 1},
	} {
		if news := must(s.RecordUses(ctx, step.uses))(t); news != step.news {
			t.Errorf("step %d: %d news, want %d", i, news, step.news)
		}
	}
	book := must(s.Uses(ctx))(t)
	if pushed, pulled := book.Last("r", "sha256:x", nil); !pushed.Equal(now.Add(time.Minute)) || !pulled.Equal(now) {
		t.Errorf("%s, %s", pushed, pulled)
	}
	if _, pulled := book.Last("r", "sha256:x", []string{"t"}); !pulled.Equal(now.Add(time.Hour)) {
		t.Errorf("by its tag: %s", pulled)
	}
	if pushed, pulled := book.Last("other", "sha256:x", nil); !pushed.IsZero() || !pulled.IsZero() {
		t.Errorf("of another repository: %s, %s", pushed, pulled)
	}

	for _, beat := range []struct{ now, host time.Time }{
		{now, now}, // the first: nobody was there before
		{now.Add(time.Minute), now.Add(time.Minute)},      // all the time
		{now.Add(day), now.Add(day)},                      // away for a day
		{now.Add(9 * day), now.Add(day).Add(time.Minute)}, // the clock was moved, and nobody was away
	} {
		if err := s.Beat(ctx, beat.now, beat.host); err != nil {
			t.Fatal(err)
		}
	}
	book = must(s.Uses(ctx))(t)
	for since, want := range map[time.Time]time.Duration{
		now.Add(-3 * day): 3*day + day - time.Minute, now: day - time.Minute, now.Add(time.Hour): day - time.Hour, now.Add(2 * day): 0,
	} {
		if got := book.Away(since); got != want {
			t.Errorf("away since %s: %s, want %s", since, got, want)
		}
	}
}

// A lease holds until it is released or its time is over; its end is a use.
func TestLeases(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	ctx := t.Context()
	take := func(id, request string, ref lastuse.Reference, export bool) (lease.Lease, error) {
		return s.AcquireLease(ctx, lease.Lease{
			ID: id, RequestID: request, References: []string{ref.Repository + ":" + ref.Tag}, Of: []lastuse.Reference{ref}, Export: export, Created: now, TTL: time.Minute, Expires: now.Add(time.Minute),
		})
	}
	web := lastuse.Reference{Repository: "cache/web", Tag: "main"}
	must(take("a", "q", web, false))(t)
	if same := must(take("b", "q", web, false))(t); same.ID != "a" {
		t.Errorf("%+v", same)
	}
	_, err := take("b", "q", web, true)
	kind(t, err, fault.AlreadyExists)
	must(take("c", "", web, true))(t)
	all := must(s.Leases(ctx, now))(t)
	if len(all) != 2 || all.Lease("cache/web", "sha256:x", []string{"main"}) != "a" || all.Lease("cache/web", "sha256:x", nil) != "" || all.Export("cache/web") != "c" || all.Export("other") != "" {
		t.Errorf("%+v", all)
	}
	if l := must(s.RenewLease(ctx, "a", 0, now.Add(30*time.Second)))(t); !l.Expires.Equal(now.Add(90 * time.Second)) {
		t.Errorf("%+v", l)
	}
	if err := s.ReleaseLease(ctx, "c", now.Add(10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := s.ReleaseLease(ctx, "c", now.Add(20*time.Second)); err != nil {
		t.Errorf("again: %v", err)
	}
	if left := must(s.Leases(ctx, now.Add(time.Hour)))(t); len(left) > 0 {
		t.Errorf("%+v", left)
	}
	pushed, pulled := must(s.Uses(ctx))(t).Last("cache/web", "sha256:x", []string{"main"})
	if !pushed.Equal(now.Add(10*time.Second)) || !pulled.Equal(now.Add(90*time.Second)) {
		t.Errorf("used at %s and %s", pushed, pulled)
	}
	_, err = s.RenewLease(ctx, "a", 0, now.Add(time.Hour))
	kind(t, err, fault.NotFound)
}

// A lease that could not be renewed while the janitor was away holds for its time after that.
func TestLeases_OutliveARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	of := []lastuse.Reference{{Repository: "cache/web", Tag: "main"}}
	l := lease.Lease{ID: "a", References: []string{"cache/web:main"}, Of: of, Created: now, TTL: time.Minute, Expires: now.Add(time.Minute)}
	must(s.AcquireLease(t.Context(), l))(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	back := now.Add(time.Hour)
	if err := s.ReviveLeases(t.Context(), back); err != nil {
		t.Fatal(err)
	}
	if all := must(s.Leases(t.Context(), back.Add(50*time.Second)))(t); len(all) != 1 {
		t.Errorf("back again: %+v", all)
	}
	must(s.RenewLease(t.Context(), "a", 0, back.Add(50*time.Second)))(t)
	if all := must(s.Leases(t.Context(), back.Add(2*time.Minute)))(t); len(all) > 0 {
		t.Errorf("not renewed: %+v", all)
	}
}

func TestSamples(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	for i := range 3 {
		if err := s.AddSample(t.Context(), growth.Sample{Time: now.Add(time.Duration(i) * 5 * day), Bytes: int64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if all := must(s.Samples(t.Context()))(t); len(all) != 2 || all[0].Bytes != 1 || !all[1].Time.Equal(now.Add(10*day)) {
		t.Errorf("%+v", all)
	}
}
