package enforce_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a cache as BuildKit's is: leaves go first, and what was used since a time
// stays. That a real daemon does so is tested on real ones, in the e2e module; here it
// is about what a run makes of it.
type memory struct {
	name string

	mu      sync.Mutex
	records map[string]cache.Record
	calls   int
	lists   int
	before  func(call int) // Remove, for what happens meanwhile
	err     error
	busy    error
	lose    context.CancelCauseFunc
	behind  time.Duration // its clock
	ahead   time.Duration // its clock, which it tells
}

func newMemory(name string, records ...cache.Record) *memory {
	m := &memory{name: name, records: map[string]cache.Record{}}
	for _, r := range records {
		m.records[r.ID] = r
	}
	return m
}

func (m *memory) Ref() cache.Ref { return cache.Ref{Daemon: m.name} }

func (m *memory) List(context.Context) (cache.Listing, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lists++
	l := cache.Listing{Cache: m.Ref(), Time: time.Now(), ClockOffset: m.ahead}
	for _, r := range m.records {
		r.Created = r.Created.Add(m.ahead)
		r.LastUsed = r.LastUsed.Add(m.ahead)
		l.Records = append(l.Records, r)
	}
	return l, m.err
}

func (m *memory) Lock(ctx context.Context) (context.Context, error) {
	if m.busy != nil {
		return nil, m.busy
	}
	held, lose := context.WithCancelCause(context.WithoutCancel(ctx))
	m.lose = lose
	return held, nil
}

func (m *memory) Remove(_ context.Context, targets []cache.Target, unusedFor time.Duration, freed func(string, int64)) error {
	m.mu.Lock()
	m.calls++
	call, before := m.calls, m.before
	m.mu.Unlock()
	if before != nil {
		before(call)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for range targets {
		for _, target := range targets {
			id := target.ID
			r, there := m.records[id]
			if !there || r.InUse || time.Since(r.LastUsed)-m.behind < unusedFor || m.isParent(id) {
				continue
			}
			delete(m.records, id)
			freed(id, r.Bytes)
		}
	}
	return nil
}

func (m *memory) isParent(id string) bool {
	for _, r := range m.records {
		if slices.Contains(r.Parents, id) {
			return true
		}
	}
	return false
}

func (m *memory) use(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.records[id]
	r.LastUsed = time.Now()
	m.records[id] = r
}

func old(id string, parents ...string) cache.Record {
	used := time.Now().Add(-time.Hour)
	return cache.Record{ID: id, Type: cache.Regular, Bytes: 10, Parents: parents, Created: used, LastUsed: used}
}

type uncounted struct{}

func (uncounted) RunEnded(context.Context, run.Run)        {}
func (uncounted) CacheSeen(context.Context, cache.Listing) {}
func (uncounted) PolicyHeld(context.Context, bool)         {}

func engine(t *testing.T, caches ...enforce.Cache) (*enforce.Engine, *state.Store) {
	t.Helper()
	return engineAt(t, filepath.Join(t.TempDir(), "s.db"), caches...)
}

func engineAt(t *testing.T, file string, caches ...enforce.Cache) (*enforce.Engine, *state.Store) {
	t.Helper()
	s, err := state.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Configure(t.Context(), policy.Default(time.Minute, 1<<40), time.Now()); err != nil {
		t.Fatal(err)
	}
	var ids int
	return enforce.New(enforce.Options{
		Caches: caches, State: s, Metrics: uncounted{}, Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Tracer: noop.NewTracerProvider().Tracer(""), NewID: func() string { ids++; return fmt.Sprint("run", ids) },
	}), s
}

// told is what a run told, as "remove a(age)" and so on.
func told(t *testing.T, e *enforce.Engine, o enforce.Order) (run.Run, string, error) {
	t.Helper()
	return toldIn(t.Context(), e, o)
}

func toldIn(ctx context.Context, e *enforce.Engine, o enforce.Order) (run.Run, string, error) {
	var all []string
	r, err := e.Run(ctx, o, func(ev enforce.Event) {
		switch {
		case ev.Removed != nil:
			all = append(all, fmt.Sprintf("remove %s(%s)", ev.Removed.Record.ID, ev.Removed.Reason))
		case ev.Kept != nil:
			all = append(all, fmt.Sprintf("keep %s(%s)", ev.Kept.Record.ID, ev.Kept.Reason))
		case ev.Missed != nil:
			all = append(all, "missed "+ev.Missed.Cache.String())
		}
	})
	slices.Sort(all)
	return r, strings.Join(all, " "), err
}

var force = enforce.Order{Trigger: run.Demand, Force: true}

func TestWhatHappensMeanwhile(t *testing.T) {
	m := newMemory("d", old("base"), old("leaf", "base"), old("other"), old("gone"))
	m.before = func(int) {
		m.use("leaf")
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.records, "gone")
	}
	e, s := engine(t, m)
	r, said, err := told(t, e, force)
	if want := "keep base(child) keep gone(gone) keep leaf(used_since) remove other(age)"; err != nil || said != want {
		t.Errorf("%v\ngot  %s\nwant %s", err, said, want)
	}
	if r.State != run.Succeeded || r.Predicted.Records != 4 || r.Removed != (plan.Amount{Records: 1, Bytes: 10}) || r.Caches[0].Before != 40 || r.Caches[0].After != 20 {
		t.Errorf("%+v", r)
	}
	kept, err := s.Verdicts(t.Context(), r.ID, 0, 10)
	if err != nil || len(kept) != 4 {
		t.Errorf("%d verdicts are kept, %v", len(kept), err)
	}
}

func TestDryRunsRemoveNothing(t *testing.T) {
	m := newMemory("d", old("a"))
	m.busy = fault.New(fault.AlreadyExists, "ALREADY_EXISTS", "another's", "ask that one")
	e, _ := engine(t, m)
	r, said, err := told(t, e, enforce.Order{Trigger: run.Demand})
	if err != nil || said != "remove a(age)" || !r.Dry || len(m.records) != 1 || m.calls != 0 {
		t.Errorf("%v, %s, %+v", err, said, r)
	}
}

func TestCachesThatAreAwayOrAnothers(t *testing.T) {
	away := fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "away", "start it")
	busy := fault.New(fault.AlreadyExists, "ALREADY_EXISTS", "another's", "ask that one")
	a, b, c := newMemory("a", old("x")), newMemory("b", old("y")), newMemory("c", old("z"))
	a.err, b.busy = away, busy
	e, _ := engine(t, a, b, c)
	if _, _, err := told(t, e, force); fault.KindOf(err) != fault.AlreadyExists {
		t.Errorf("on demand: %v", err)
	}
	r, said, err := told(t, e, enforce.Order{Trigger: run.Schedule, Force: true, All: true})
	if err != nil || said != "missed a missed b remove z(age)" || r.State != run.Partial || r.Err == nil || len(r.Caches) != 3 {
		t.Errorf("%v, %s, %+v", err, said, r)
	}
	r, _, err = told(t, e, enforce.Order{Trigger: run.Demand, Force: true, Caches: []cache.Ref{a.Ref()}})
	if err != nil || r.State != run.Failed || fault.KindOf(r.Err) != fault.Unavailable {
		t.Errorf("only one that is away: %v, %+v", err, r)
	}
	_, _, err = told(t, e, enforce.Order{Trigger: run.Demand, Caches: []cache.Ref{{Daemon: "none"}}})
	if fault.KindOf(err) != fault.NotFound {
		t.Errorf("an unknown one: %v", err)
	}
}

func many(n int) (all []cache.Record) {
	for i := range n {
		all = append(all, old(fmt.Sprintf("r%04d", i)))
	}
	return all
}

// A run ends after the chunk under way: when its caller goes, when its time is over,
// when the lock is lost.
func TestEndsAfterTheChunk(t *testing.T) {
	for name, c := range map[string]struct {
		stop  func(m *memory, cancel context.CancelFunc)
		order enforce.Order
		want  run.State
	}{
		"the caller goes":   {func(_ *memory, cancel context.CancelFunc) { cancel() }, force, run.Cancelled},
		"the service stops": {func(_ *memory, cancel context.CancelFunc) { cancel() }, enforce.Order{Trigger: run.Schedule, Force: true, All: true}, run.Interrupted},
		"the time is over":  {func(*memory, context.CancelFunc) { time.Sleep(1100 * time.Millisecond) }, enforce.Order{Trigger: run.Demand, Force: true, Budget: &policy.Budget{Time: time.Second}}, run.Partial},
		"the lock is lost": {func(m *memory, _ context.CancelFunc) {
			m.lose(fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "away", "start it"))
			time.Sleep(20 * time.Millisecond)
		}, force, run.Partial},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory("d", many(650)...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			m.before = func(call int) {
				if call == 2 {
					c.stop(m, cancel)
				}
			}
			e, s := engine(t, m)
			r, _, err := toldIn(ctx, e, c.order)
			if err != nil || r.State != c.want || r.Removed.Records != 500 || len(m.records) != 150 {
				t.Errorf("%v: %s, %d removed, %d left, %v", err, r.State, r.Removed.Records, len(m.records), r.Err)
			}
			if kept, err := s.RunOf(t.Context(), r.ID); err != nil || kept.State != c.want {
				t.Errorf("kept: %+v, %v", kept, err)
			}
		})
	}
}

// A daemon whose clock is behind gives up what it should all the same.
func TestClockBehind(t *testing.T) {
	m := newMemory("d", many(300)...)
	m.behind = time.Minute
	e, _ := engine(t, m)
	r, _, err := toldIn(t.Context(), e, force)
	if err != nil || r.State != run.Succeeded || r.Removed.Records != 300 {
		t.Errorf("%v: %+v", err, r)
	}
}

// Ages are right whatever a daemon's clock says, also for what a plan is compared with later.
func TestAges_AreCorrectedByTheDaemonsClock(t *testing.T) {
	for _, ahead := range []time.Duration{-3 * time.Hour, 0, 3 * time.Hour} {
		m := newMemory("d", used(30*time.Second, 90*time.Second)...)
		m.ahead = ahead
		e, _ := engine(t, m) // keeps what was used within a minute
		p, err := e.Plan(t.Context(), enforce.Ask{})
		if err != nil || p.Removes.Records != 1 || p.Verdicts[0].Age.Round(time.Second) != 90*time.Second {
			t.Fatalf("%s: %v, %+v", ahead, err, p.Verdicts)
		}
		if _, said, err := told(t, e, enforce.Order{Trigger: run.Demand, Force: true, PlanDigest: p.Digest}); err != nil || said != "remove 1(age)" {
			t.Errorf("%s: %v, %s", ahead, err, said)
		}
	}
}

// roomy is a daemon that sees to its disk by itself.
type roomy struct {
	*memory
	free  int64 // bytes
	asked []string
}

func (m *roomy) MakeRoom(ctx context.Context, free int64, except []string, unusedFor time.Duration, freed func(string, int64)) error {
	m.asked = append(m.asked, fmt.Sprint(free, except))
	for _, id := range slices.Sorted(maps.Keys(m.records)) {
		if m.free >= free {
			return nil
		}
		if slices.Contains(except, id) {
			continue
		}
		if err := m.Remove(ctx, []cache.Target{{ID: id}}, unusedFor, func(id string, bytes int64) {
			m.free += bytes
			freed(id, bytes)
		}); err != nil {
			return err
		}
	}
	return nil
}

// A daemon makes room by its own figures: to the high mark, once it is below the low
// one. A plan that was given is carried out without that.
func TestMakesRoom(t *testing.T) {
	p := policy.Policy{Rules: []policy.Rule{{Name: "room", Keep: &policy.Keep{FreeDisk: &policy.FreeDisk{LowBytes: 100, HighBytes: 130}}}}}
	order := force
	order.Policy = &p
	m := &roomy{memory: newMemory("d", many(20)...), free: 85}
	e, s := engine(t, m)
	r, _, err := toldIn(t.Context(), e, order)
	if err != nil || r.State != run.Succeeded || r.Removed != (plan.Amount{Records: 5, Bytes: 50}) || r.Caches[0].After != 150 || !slices.Equal(m.asked, []string{"100 []", "130 []"}) {
		t.Errorf("%v: %+v, asked for %v", err, r, m.asked)
	}
	verdicts, err := s.Verdicts(t.Context(), r.ID, 0, 10)
	if err != nil || len(verdicts) != 5 || verdicts[0].Rule != "room" || verdicts[0].Reason != plan.FreeDisk || verdicts[0].Explain == "" {
		t.Errorf("%v, %v", verdicts, err)
	}
	if r, _, err := toldIn(t.Context(), e, order); err != nil || r.Removed.Records != 0 || len(m.asked) != 3 {
		t.Errorf("%v: %+v, asked for %v", err, r, m.asked)
	}
}

func TestBudgetOfRecords(t *testing.T) {
	m := newMemory("d", many(10)...)
	e, _ := engine(t, m)
	limit := int64(4)
	r, _, err := told(t, e, enforce.Order{Trigger: run.Demand, Force: true, Budget: &policy.Budget{Records: &limit}})
	if err != nil || r.State != run.Partial || r.Removed.Records != 4 || r.Err != nil {
		t.Errorf("%v, %+v", err, r)
	}
}

// A plan that was shown is carried out as it was shown, but for what has changed.
func TestGivenPlan(t *testing.T) {
	m := newMemory("d", old("a"), old("b"), old("c"), old("p"), old("q", "p"))
	e, s := engine(t, m)
	p, err := e.Plan(t.Context(), enforce.Ask{})
	if err != nil || p.Removes.Records != 5 {
		t.Fatal(p, err)
	}
	m.use("a")
	m.records["new"] = old("new")
	if _, err := s.AddPin(t.Context(), policy.Pin{ID: "pin", Cache: m.Ref(), Record: "b", Created: time.Now()}, ""); err != nil {
		t.Fatal(err)
	}
	delete(m.records, "c")
	r, said, err := told(t, e, enforce.Order{Trigger: run.Demand, Force: true, PlanDigest: p.Digest})
	if want := "keep a(used_since) keep b(pinned) keep c(gone) remove p(age) remove q(age)"; err != nil || said != want {
		t.Errorf("%v\ngot  %s\nwant %s", err, said, want)
	}
	if _, there := m.records["new"]; !there || r.PlanDigest != p.Digest {
		t.Errorf("what the plan did not name is gone: %+v", r)
	}
}

func TestRemovesAllNeedsForce(t *testing.T) {
	m := newMemory("d", old("a"))
	e, _ := engine(t, m)
	none := int64(0)
	everything := &policy.Policy{Rules: []policy.Rule{{Name: "all", Keep: &policy.Keep{Bytes: &none}}}}
	if _, _, err := told(t, e, enforce.Order{Trigger: run.Demand, Force: true, Policy: everything}); fault.KindOf(err) != fault.FailedPrecondition {
		t.Errorf("%v", err)
	}
	if _, said, err := told(t, e, enforce.Order{Trigger: run.Demand, Force: true, All: true, Policy: everything}); err != nil || said != "remove a(bytes)" {
		t.Errorf("%v, %s", err, said)
	}
}

// One run at a time on a cache.
func TestOneAtATime(t *testing.T) {
	m := newMemory("d", old("a"))
	e, _ := engine(t, m)
	begun, goOn := make(chan struct{}), make(chan struct{})
	m.before = func(int) {
		close(begun)
		<-goOn
	}
	done := make(chan run.Run)
	go func() {
		r, _ := e.Run(context.Background(), force, func(enforce.Event) {})
		done <- r
	}()
	<-begun
	_, _, err := told(t, e, force)
	busy, _ := err.(*fault.Error) //nolint:errorlint // it is this very error
	if fault.KindOf(err) != fault.AlreadyExists || busy == nil || busy.Metadata["run_id"] != "run1" {
		t.Errorf("%v", err)
	}
	close(goOn)
	if r := <-done; r.State != run.Succeeded || r.ID != "run1" {
		t.Errorf("%+v", r)
	}
	m.before = nil
	if _, _, err := told(t, e, force); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

// Builds of the history go in small parts, for a run ends after the part under way.
func TestHistoryGoesInSmallParts(t *testing.T) {
	var records []cache.Record
	for i := range 60 {
		r := old(fmt.Sprintf("history:%02d", i))
		r.Type = cache.History
		records = append(records, r)
	}
	m := newMemory("d", records...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m.before = func(call int) {
		if call == 2 {
			cancel()
		}
	}
	e, _ := engine(t, m)
	if r, _, err := toldIn(ctx, e, force); err != nil || r.State != run.Cancelled || r.Removed.Records != 48 {
		t.Errorf("%v: %s, %d removed", err, r.State, r.Removed.Records)
	}
}
