package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// next ends a build of a tenant and returns the tenant whose build got its slot.
func next(t *testing.T, tickets []*Ticket, tenant string) string {
	t.Helper()
	ran := map[*Ticket]bool{}
	var ends *Ticket
	for _, ticket := range tickets {
		if ran[ticket] = ticket.state == running; ran[ticket] && ticket.tenant.name == tenant {
			ends = ticket
		}
	}
	if ends == nil {
		t.Fatalf("no build of %s runs", tenant)
	}
	ends.Release()
	for _, ticket := range tickets {
		if ticket.state == running && !ran[ticket] {
			return ticket.tenant.name
		}
	}
	return ""
}

func enterMany(t *testing.T, q *Queue, n int, tenants ...string) (tickets []*Ticket) {
	t.Helper()
	for range n {
		for _, tenant := range tenants {
			tickets = append(tickets, enter(t, q, tenant, 0))
		}
	}
	return tickets
}

// turns ends builds, one after the other, on one slot.
func turns(t *testing.T, tickets []*Ticket, first string, n int) string {
	t.Helper()
	var got []string
	for range n {
		first = next(t, tickets, first)
		got = append(got, first)
	}
	return strings.Join(got, " ")
}

// A tenant that did not compete, because it had no builds or was at its limit,
// is due at once and then in turns.
func TestIdleTimeIsNoCredit(t *testing.T) {
	for name, atLimit := range map[string]bool{"no builds": false, "at its limit": true} {
		t.Run(name, func(t *testing.T) {
			q := New(Options{Slots: 2, Limits: func(tenant string) Limits {
				return map[string]Limits{"idle": {MaxRunning: 1}}[tenant]
			}})
			holder := enter(t, q, "idle", 0)
			tickets := enterMany(t, q, 50, "a", "b")
			if got, want := turns(t, tickets, "a", 5), "b a b a b"; got != want {
				t.Fatalf("turns: %s, want %s", got, want)
			}
			if atLimit {
				tickets = append(tickets, enterMany(t, q, 10, "idle")...)
			}
			if got, want := turns(t, tickets, "b", 20), strings.TrimSpace(strings.Repeat("a b ", 10)); got != want {
				t.Fatalf("turns: %s, want %s", got, want)
			}
			q.opts.Slots = 1
			holder.Release()
			if !atLimit {
				tickets = append(tickets, enterMany(t, q, 10, "idle")...)
			}
			if got, want := turns(t, tickets, "b", 7), "a idle b a idle b a"; got != want && got != "idle a b idle a b idle" {
				t.Errorf("turns: %s, want %s, or idle first", got, want)
			}
		})
	}
}

// A tenant with a slot of its own has many short builds beside others' long ones.
// When it must share that slot, it owes the others nothing.
func TestShortBuildsRunUpNoDebt(t *testing.T) {
	q := New(Options{Slots: 2})
	start := fill(t, q, 2)
	tickets := enterMany(t, q, 60, "short", "long")
	start()
	for range 30 {
		if got := next(t, tickets, "short"); got != "short" {
			t.Fatalf("%s took the slot of the short builds", got)
		}
	}
	tickets = append(tickets, enterMany(t, q, 20, "late")...)
	if got, want := turns(t, tickets, "short", 4), "short late short late"; got != want {
		t.Errorf("turns beside one long build: %s, want %s", got, want)
	}
}

// A tenant of little weight that had a turn beside one of much weight is due soon
// when that one has gone.
func TestADebtIsOfTheShareNow(t *testing.T) {
	q := New(Options{Slots: 1, Limits: func(tenant string) Limits {
		return map[string]Limits{"big": {Weight: 100}}[tenant]
	}})
	start := fill(t, q, 1)
	tickets := enterMany(t, q, 10, "small", "big")
	start()
	if got, want := turns(t, tickets, "small", 3), "big big big"; got != want {
		t.Fatalf("turns: %s, want %s", got, want)
	}
	tickets = append(tickets, enterMany(t, q, 10, "other")...)
	running := tickets[slices.IndexFunc(tickets, func(ticket *Ticket) bool { return ticket.state == running })]
	for _, ticket := range tickets {
		if ticket.tenant.name == "big" && ticket != running {
			ticket.Release()
		}
	}
	if got, want := turns(t, tickets, "big", 6), "other small other small other small"; got != want {
		t.Errorf("turns: %s, want %s", got, want)
	}
}

func TestOrder(t *testing.T) {
	limits := map[string]Limits{"heavy": {Weight: 2}, "capped": {MaxRunning: 2}}
	for name, test := range map[string]struct {
		builds, want string // tenant and priority of each
	}{
		"as they come":   {"a0 a0 a0", "a0 a0 a0"},
		"priority":       {"a0 a1 a2 a1", "a2 a1 a1 a0"},
		"in turns":       {"a0 a0 a0 b0 b0", "a0 b0 a0 b0 a0"},
		"no priority":    {"a0 a0 b9 b9", "a0 b9 a0 b9"},
		"by weight":      {"a0 a0 heavy0 heavy0 heavy0 heavy0", "a0 heavy0 heavy0 a0 heavy0 heavy0"},
		"over its limit": {"capped0 capped0 capped0 a0 a0 a0", "capped0 a0 capped0 a0 a0 capped0"},
	} {
		t.Run(name, func(t *testing.T) {
			q := New(Options{Slots: 1, Limits: func(tenant string) Limits { return limits[tenant] }})
			enter(t, q, "holder", 0)
			for _, build := range strings.Fields(test.builds) {
				last := len(build) - 1
				enter(t, q, build[:last], int(build[last]-'0'))
			}
			var got []string
			for _, ticket := range q.order() {
				got = append(got, fmt.Sprint(ticket.tenant.name, ticket.priority))
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("order %v, want %s", got, test.want)
			}
		})
	}
}

func TestATenantAtItsLimitBlocksNobody(t *testing.T) {
	limits := map[string]Limits{"a": {MaxRunning: 1}}
	q := New(Options{Slots: 3, Limits: func(tenant string) Limits { return limits[tenant] }})
	first, second := enter(t, q, "a", 0), enter(t, q, "a", 0)
	third := enter(t, q, "b", 0)
	if first.state != running || second.state != waiting || third.state != running {
		t.Fatalf("states %d %d %d", first.state, second.state, third.state)
	}
	if got := q.Stats(); got != (Stats{Running: 2, Queued: 1}) {
		t.Errorf("stats %+v", got)
	}
	first.Release()
	if second.state != running {
		t.Error("the tenant's next build did not get its turn")
	}
}

func TestRefusals(t *testing.T) {
	limits := map[string]Limits{"small": {MaxQueued: 1}}
	q := New(Options{Slots: 1, MaxQueued: 3, Limits: func(tenant string) Limits { return limits[tenant] }})
	enter(t, q, "small", 0)
	enter(t, q, "small", 0)
	refused := func(tenant, message, limit string) {
		t.Helper()
		_, err := q.Enter(Entry{Tenant: tenant})
		full, ok := errors.AsType[*fault.Error](err)
		if !ok || full.Kind != fault.ResourceExhausted || full.Reason != "LIMIT_REACHED" || full.RetryAfter <= 0 || full.Remedy == "" {
			t.Fatalf("error %#v", err)
		}
		if full.Message != message || full.Metadata["limit"] != limit {
			t.Errorf("message %q, metadata %v", full.Message, full.Metadata)
		}
	}
	refused("small", `tenant "small" has 1 build waiting, its limit (max_queued of admission.tenants or admission.defaults)`, "admission.tenants")
	enter(t, q, "big", 0)
	enter(t, q, "big", 0)
	refused("big", "the builder has 3 builds waiting, its limit (admission.max_queued)", "admission.max_queued")
	if got := q.Stats(); got != (Stats{Running: 1, Queued: 3}) {
		t.Errorf("stats %+v", got)
	}
	for range 5 {
		q.Readmit(Entry{Tenant: "small"})
	}
	if got := q.Stats(); got.Queued != 8 {
		t.Errorf("readmitted: stats %+v", got)
	}
}

func TestRefusalsByBytes(t *testing.T) {
	limits := map[string]Limits{"small": {MaxQueuedBytes: 10}}
	q := New(Options{Slots: 1, MaxQueuedBytes: 30, Limits: func(tenant string) Limits { return limits[tenant] }})
	enters := func(tenant string, bytes int64, want string) {
		t.Helper()
		_, err := q.Enter(Entry{Tenant: tenant, Bytes: bytes})
		if full, _ := errors.AsType[*fault.Error](err); (full == nil && want != "") || (full != nil && full.Metadata["limit"] != want) {
			t.Errorf("%s, %d bytes: %v", tenant, bytes, err)
		}
	}
	enters("big", 1000, "") // It has a slot, and does not wait.
	enters("small", 10, "")
	enters("small", 1, "admission.tenants")
	enters("big", 21, "admission.max_queued_bytes")
	enters("big", 20, "")
}

// A queue that is closed gives out no slot, neither a free one nor one that comes
// free.
func TestClose(t *testing.T) {
	q := New(Options{Slots: 2})
	running := enter(t, q, "a", 0)
	q.Close()
	late := enter(t, q, "b", 0)
	running.Release()
	if got := q.Stats(); got != (Stats{Queued: 1}) {
		t.Errorf("stats %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := late.Wait(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("the wait ended with %v", err)
	}
	if got := q.Stats(); got != (Stats{}) {
		t.Errorf("stats %+v", got)
	}
}

// inbox keeps the places that a wait was told of.
type inbox struct {
	mu     sync.Mutex
	places []Place
}

func (b *inbox) put(p Place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.places = append(b.places, p)
}

func (b *inbox) all() []Place {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.places)
}

func (b *inbox) positions() []int {
	var all []int
	for _, p := range b.all() {
		all = append(all, p.Position)
	}
	return all
}

func TestWaitTellsThePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Slots: 1, Limits: func(string) Limits { return Limits{MaxRunning: 1} }})
		first, second, third := enter(t, q, "a", 0), enter(t, q, "b", 0), enter(t, q, "c", 0)
		blocked := enter(t, q, "a", 0)
		if err := first.Wait(t.Context(), func(Place) { t.Error("told though it has a slot") }); err != nil {
			t.Fatal(err)
		}
		var told, toldBlocked inbox
		waited, waitedBlocked := make(chan error, 1), make(chan error, 1)
		go func() { waited <- third.Wait(t.Context(), told.put) }()
		go func() { waitedBlocked <- blocked.Wait(t.Context(), toldBlocked.put) }()
		synctest.Wait()
		if want := []Place{{2, "the builder runs 1 build, its limit (max_running_builds)"}}; !slices.Equal(told.all(), want) {
			t.Errorf("at once: %v, want %v", told.all(), want)
		}
		if want := []Place{{3, `tenant "a" runs 1 build, its limit (max_running of admission.tenants or admission.defaults)`}}; !slices.Equal(toldBlocked.all(), want) {
			t.Errorf("at once: %v, want %v", toldBlocked.all(), want)
		}
		first.Release()
		time.Sleep(time.Second)
		if got := told.positions(); !slices.Equal(got, []int{2, 1}) {
			t.Errorf("positions %v", got)
		}
		second.Release()
		time.Sleep(time.Second)
		if err := <-waited; err != nil {
			t.Errorf("Wait: %v", err)
		}
		third.Release()
		if err := <-waitedBlocked; err != nil {
			t.Errorf("Wait: %v", err)
		}
		places := toldBlocked.all()
		if last := places[len(places)-1]; last != (Place{1, "the builder runs 1 build, its limit (max_running_builds)"}) {
			t.Errorf("told last: %v", last)
		}
	})
}

func TestWaitIsToldAFewTimesASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{Slots: 1})
		enter(t, q, "a", 0)
		var ahead []*Ticket
		for range 100 {
			ahead = append(ahead, enter(t, q, "a", 0))
		}
		last := enter(t, q, "a", 0)
		var told inbox
		ctx, cancel := context.WithCancel(t.Context())
		waited := make(chan error, 1)
		go func() { waited <- last.Wait(ctx, told.put) }()
		for _, ticket := range ahead {
			time.Sleep(20 * time.Millisecond)
			ticket.Release()
		}
		time.Sleep(time.Second)
		got := told.positions()
		if len(got) < 5 || len(got) > 1+2*4+1 || got[0] != 101 || got[len(got)-1] != 1 {
			t.Errorf("in 2 seconds: %v", got)
		}
		cancel()
		if err := <-waited; !errors.Is(err, context.Canceled) {
			t.Errorf("Wait: %v", err)
		}
	})
}

func TestBusyEndsBySelf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := "the daemon solves 2 builds, its limit (daemons.max_builds)"
		q := New(Options{Slots: 4, Busy: func() string { return why }})
		ticket := enter(t, q, "a", 0)
		var told inbox
		waited := make(chan error, 1)
		go func() { waited <- ticket.Wait(t.Context(), told.put) }()
		time.Sleep(time.Minute)
		if want := []Place{{1, why}}; !slices.Equal(told.all(), want) {
			t.Errorf("told %v, want %v", told.all(), want)
		}
		start := time.Now()
		q.mu.Lock()
		why = ""
		q.mu.Unlock()
		if err := <-waited; err != nil || time.Since(start) > 300*time.Millisecond {
			t.Errorf("Wait: %v after %s", err, time.Since(start))
		}
	})
}

func TestEndOfContextLeaves(t *testing.T) {
	cause := errors.New("the caller went")
	for name, ended := range map[string]bool{"before": true, "while it waits": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := New(Options{Slots: 1})
				first, second, third := enter(t, q, "a", 0), enter(t, q, "a", 0), enter(t, q, "a", 0)
				ctx, cancel := context.WithCancelCause(t.Context())
				waited := make(chan error, 2)
				if ended {
					cancel(cause)
				}
				go func() { waited <- second.Wait(ctx, nil) }()
				synctest.Wait()
				cancel(cause)
				if err := <-waited; !errors.Is(err, cause) {
					t.Errorf("Wait: %v", err)
				}
				go func() { waited <- third.Wait(t.Context(), nil) }()
				first.Release()
				if err := <-waited; err != nil {
					t.Errorf("Wait of the next: %v", err)
				}
				// One that has a slot gives it back when its context has ended.
				if err := third.Wait(ctx, nil); !errors.Is(err, cause) {
					t.Errorf("Wait: %v", err)
				}
				if q.Stats() != (Stats{}) || len(q.tenants) != 0 || q.tellAt != nil {
					t.Errorf("left behind: %+v", q)
				}
			})
		})
	}
}

// What was told of a place before the slot came is not told any more.
func TestOldNewsIsNotTold(t *testing.T) {
	for range 20 {
		q := New(Options{Slots: 1})
		first, second := enter(t, q, "a", 0), enter(t, q, "a", 0)
		q.tellAll()
		first.Release()
		if err := second.Wait(t.Context(), func(Place) { t.Error("told though it has a slot") }); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReleaseEndsWait(t *testing.T) {
	q := New(Options{Slots: 1})
	enter(t, q, "a", 0)
	ticket := enter(t, q, "a", 0)
	ticket.Release()
	ticket.Release()
	if err := ticket.Wait(t.Context(), nil); fault.KindOf(err) != fault.Canceled {
		t.Errorf("Wait: %v", err)
	}
}

// 64 callers of 8 tenants come, wait, give up and go at the same time.
func TestManyAtOnce(t *testing.T) {
	const slots, callers, rounds = 4, 64, 60
	q := New(Options{Slots: slots, MaxQueued: 40, Limits: func(tenant string) Limits {
		return Limits{MaxRunning: 2, Weight: int(tenant[0]-'a') % 3}
	}})
	var all, ran, refused atomic.Int64
	var of [8]atomic.Int64
	var group sync.WaitGroup
	for caller := range callers {
		group.Go(func() {
			tenant := caller % len(of)
			for range rounds {
				ticket, err := q.Enter(Entry{Tenant: string(rune('a' + tenant)), Priority: rand.IntN(3)})
				if err != nil {
					refused.Add(1)
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(20))*time.Millisecond)
				if err := ticket.Wait(ctx, func(p Place) {
					if p.Position < 1 || p.Reason == "" {
						t.Errorf("place %+v", p)
					}
				}); err == nil {
					if n := all.Add(1); n > slots {
						t.Errorf("%d run on %d slots", n, slots)
					}
					if n := of[tenant].Add(1); n > 2 {
						t.Errorf("tenant %d runs %d", tenant, n)
					}
					time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
					of[tenant].Add(-1)
					all.Add(-1)
					ran.Add(1)
				}
				cancel()
				ticket.Release()
			}
		})
	}
	group.Wait()
	if ran.Load() == 0 || refused.Load() == 0 {
		t.Errorf("%d ran, %d were refused: nothing was tested", ran.Load(), refused.Load())
	}
	if q.Stats() != (Stats{}) || len(q.tenants) != 0 || len(q.backlog) != 0 {
		t.Errorf("left behind: %+v", q)
	}
}

// What a build costs that comes and another that ends while 10,000 wait, and what
// it costs to tell all of them where they stand, about once a second then.
func BenchmarkTenThousandWaiting(b *testing.B) {
	for _, tenants := range []int{1, 100, 10000} {
		q, tickets := New(Options{Slots: 1}), []*Ticket{}
		for i := range 10001 {
			tickets = append(tickets, enter(b, q, fmt.Sprint(i%tenants), i%3))
		}
		b.Run(fmt.Sprintf("turn/tenants=%d", tenants), func(b *testing.B) {
			for i := range b.N {
				b.StopTimer()
				at := slices.IndexFunc(tickets, func(t *Ticket) bool { return t.state == running })
				b.StartTimer()
				ended := tickets[at]
				tickets[at] = enter(b, q, fmt.Sprint(i%tenants), i%3)
				q.tellNow(tickets[at])
				ended.Release()
			}
		})
		b.Run(fmt.Sprintf("tell/tenants=%d", tenants), func(b *testing.B) {
			for range b.N {
				q.tellAll()
			}
		})
	}
}
