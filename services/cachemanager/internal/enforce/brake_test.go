package enforce_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// used is records that were last used so long ago.
func used(ages ...time.Duration) (all []cache.Record) {
	for i, age := range ages {
		at := time.Now().Add(-age)
		all = append(all, cache.Record{ID: fmt.Sprint(i), Type: cache.Regular, Bytes: 10, Created: at, LastUsed: at})
	}
	return all
}

var scheduled = enforce.Order{Trigger: run.Schedule, Force: true, All: true}

func hours(n int) time.Duration { return time.Duration(n) * time.Hour }

// What a policy removes day by day is not held: after an idle weekend that may be all.
func TestBrake_LetsTheOrdinaryBoundThrough(t *testing.T) {
	m := newMemory("d", used(hours(49), hours(60), hours(70))...)
	e, s := engine(t, m)
	e.MaxRemovalPercent = 50
	if err := s.Configure(t.Context(), policy.Default(hours(48), 1<<40), time.Now()); err != nil {
		t.Fatal(err)
	}
	r, said, err := told(t, e, scheduled)
	if err != nil || r.State != run.Succeeded || said != "remove 0(age) remove 1(age) remove 2(age)" {
		t.Errorf("%v, %s, %+v", err, said, r)
	}
	// Nor when all of it is old at the first run after a change that makes no difference.
	for _, r := range used(hours(49), hours(60)) {
		m.records[r.ID] = r
	}
	if _, err := policy.Update(t.Context(), s, policy.Change{Policy: policy.Default(hours(47), 1<<40)}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if r, said, err := told(t, e, scheduled); err != nil || r.Held != 0 || r.Removed.Records != 2 {
		t.Errorf("%v, %s, %+v", err, said, r)
	}
}

// A new policy that would remove most of a cache waits for approval, and the one before it goes on.
func TestBrake_HoldsAPolicyThatWouldRemoveTooMuch(t *testing.T) {
	m := newMemory("d", used(hours(1), hours(2), hours(3), hours(60))...)
	other := newMemory("other", used(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)...)
	e, s := engine(t, m, other)
	e.MaxRemovalPercent = 50
	configure := func(age time.Duration) {
		t.Helper()
		if err := s.Configure(t.Context(), policy.Default(age, 1<<40), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	configure(hours(100))
	if r, said, err := told(t, e, scheduled); err != nil || said != "" || r.Held != 0 {
		t.Fatalf("%v, %s, %+v", err, said, r)
	}
	configure(hours(48)) // removes a quarter, which is not too much
	r, said, err := told(t, e, scheduled)
	if err != nil || said != "remove 3(age)" || r.Held != 0 {
		t.Fatalf("%v, %s, %+v", err, said, r)
	}
	applied := r.PolicyVersion
	if h := e.Compare(t.Context(), policy.Default(hours(47), 1<<40)); h != nil {
		t.Errorf("a policy that is not to wait: %+v", h)
	}
	if h := e.Compare(t.Context(), policy.Default(time.Minute, 1<<40)); h == nil || h.Applied != applied || !strings.Contains(h.Message, "30 B of 30 B") {
		t.Errorf("a policy that is to wait: %+v", h)
	}
	configure(time.Minute) // a typo: 1m, not 1M
	for _, trigger := range []run.Trigger{run.Schedule, run.FreeDisk, run.Build} {
		m.records["old"] = old("old")
		r := m.records["old"]
		r.LastUsed = time.Now().Add(-hours(50))
		m.records["old"] = r
		got, said, err := told(t, e, enforce.Order{Trigger: trigger, Force: true, All: true})
		if err != nil || said != "remove old(age)" || got.State != run.Partial || got.PolicyVersion != applied || got.Held != applied+1 {
			t.Fatalf("%s: %v, %s, %+v", trigger, err, said, got)
		}
		if text := got.Err.Error(); !strings.Contains(text, "30 B of 40 B") || !strings.Contains(text, "from d") || fault.KindOf(got.Err) != fault.FailedPrecondition {
			t.Errorf("%v", got.Err)
		}
	}
	if h := e.Hold(); h == nil || h.Version != applied+1 || h.Applied != applied {
		t.Errorf("%+v", h)
	}
	inForce, err := s.PolicyInForce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := policy.Update(t.Context(), s, policy.Change{Policy: inForce, Force: true}, time.Now()); err != nil {
		t.Fatal(err)
	}
	r, said, err = told(t, e, scheduled)
	if err != nil || said != "remove 0(age) remove 1(age) remove 2(age)" || r.State != run.Succeeded || e.Hold() != nil {
		t.Errorf("approved: %v, %s, %+v", err, said, r)
	}
}

// What somebody asks for is done: a plan says before what it removes.
func TestBrake_DoesNotHoldWhatIsAskedFor(t *testing.T) {
	m := newMemory("d", used(hours(1), hours(2))...)
	e, s := engine(t, m)
	e.MaxRemovalPercent = 50
	for _, age := range []time.Duration{hours(100), time.Minute} {
		if err := s.Configure(t.Context(), policy.Default(age, 1<<40), time.Now()); err != nil {
			t.Fatal(err)
		}
		if age == hours(100) {
			if _, _, err := told(t, e, scheduled); err != nil {
				t.Fatal(err)
			}
		}
	}
	if r, said, err := told(t, e, force); err != nil || said != "remove 0(age) remove 1(age)" || r.Held != 0 {
		t.Errorf("%v, %s, %+v", err, said, r)
	}
}

// A cache that is away is compared when it is back.
func TestBrake_ComparesCachesThatWereAway(t *testing.T) {
	a, b := newMemory("a", used(0, 0)...), newMemory("b", used(hours(1), hours(2))...)
	e, s := engine(t, a, b)
	e.MaxRemovalPercent = 50
	if err := s.Configure(t.Context(), policy.Default(hours(100), 1<<40), time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := told(t, e, scheduled); err != nil {
		t.Fatal(err)
	}
	if err := s.Configure(t.Context(), policy.Default(time.Minute, 1<<40), time.Now()); err != nil {
		t.Fatal(err)
	}
	b.err = fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "away", "start it")
	if r, _, err := told(t, e, scheduled); err != nil || r.Held != 0 {
		t.Fatalf("%v, %+v", err, r)
	}
	b.err = nil
	if r, said, err := told(t, e, scheduled); err != nil || r.Held == 0 || said != "" {
		t.Errorf("%v, %s, %+v", err, said, r)
	}
}

// A budget spreads what a policy removes over many runs, and does not make it less.
func TestBrake_HoldsWhatABudgetSpreads(t *testing.T) {
	m := newMemory("d", used(hours(1), hours(2), hours(3), hours(4))...)
	e, s := engine(t, m)
	e.MaxRemovalPercent = 50
	if err := s.Configure(t.Context(), policy.Default(hours(100), 1<<40), time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := told(t, e, scheduled); err != nil {
		t.Fatal(err)
	}
	p, one := policy.Default(time.Minute, 1<<40), int64(1)
	p.Budget.Records = &one
	if err := s.Configure(t.Context(), p, time.Now()); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if r, said, err := told(t, e, scheduled); err != nil || said != "" || r.Held == 0 {
			t.Fatalf("%v, %q, %+v", err, said, r)
		}
	}
}
