package queue

import (
	"math"
	"slices"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fill takes all slots, and gives them back at once.
func fill(t interface{ Fatal(...any) }, q *Queue, slots int) (release func()) {
	var held []*Ticket
	for range slots {
		held = append(held, enter(t, q, "filler", 0))
	}
	busy := func(why string) {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.opts.Busy = func() string { return why }
	}
	return func() {
		busy("starting")
		for _, ticket := range held {
			ticket.Release()
		}
		busy("")
		q.tellAll()
	}
}

func enter(t interface{ Fatal(...any) }, q *Queue, tenant string, priority int) *Ticket {
	ticket, err := q.Enter(Entry{Tenant: tenant, Priority: priority})
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

// model is a queue and all tickets of it that are not released.
type model struct {
	q       *Queue
	opts    Options
	limits  map[string]Limits
	busy    atomic.Bool
	tickets []*Ticket
	ran     []*Ticket // in the order in which they got their slot
}

func newModel(t *rapid.T) *model {
	m := &model{limits: map[string]Limits{}}
	for _, name := range []string{"a", "b", "c", "d"} {
		m.limits[name] = Limits{
			MaxRunning: rapid.IntRange(0, 3).Draw(t, "max running"),
			MaxQueued:  rapid.IntRange(0, 6).Draw(t, "max queued"),
			Weight:     rapid.IntRange(0, 5).Draw(t, "weight"),

			MaxQueuedBytes: rapid.Int64Range(0, 300).Draw(t, "max queued bytes"),
		}
	}
	m.opts = Options{
		Slots:     rapid.IntRange(0, 5).Draw(t, "slots"),
		MaxQueued: rapid.IntRange(0, 20).Draw(t, "max queued"),

		MaxQueuedBytes: rapid.Int64Range(0, 1000).Draw(t, "max queued bytes"),
		Limits:         func(tenant string) Limits { return m.limits[tenant] },
		Busy: func() string {
			if m.busy.Load() {
				return "busy"
			}
			return ""
		},
	}
	m.q = New(m.opts)
	return m
}

func (m *model) enter(t *rapid.T) {
	e := Entry{
		Tenant:   rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "tenant"),
		Priority: rapid.IntRange(-1, 1).Draw(t, "priority"),
		Bytes:    rapid.Int64Range(0, 100).Draw(t, "bytes"),
	}
	if rapid.Bool().Draw(t, "readmit") {
		m.tickets = append(m.tickets, m.q.Readmit(e))
		return
	}
	m.q.mu.Lock()
	queued, queuedOf, bytes, bytesOf := m.q.waiting, 0, m.q.bytes+e.Bytes, e.Bytes
	for _, ticket := range m.tickets {
		if ticket.state == waiting && ticket.tenant.name == e.Tenant {
			queuedOf++
			bytesOf += ticket.bytes
		}
	}
	m.q.mu.Unlock()
	ticket, err := m.q.Enter(e)
	if err == nil {
		m.tickets = append(m.tickets, ticket)
		return
	}
	limits := m.limits[e.Tenant]
	within := func(n, limit int64) bool { return limit == 0 || n <= limit }
	if (limits.MaxQueued == 0 || queuedOf < limits.MaxQueued) && (m.opts.MaxQueued == 0 || queued < m.opts.MaxQueued) &&
		within(bytesOf, limits.MaxQueuedBytes) && within(bytes, m.opts.MaxQueuedBytes) {
		t.Fatalf("refused though there is room: %v", err)
	}
}

// release ends a build that runs, or that waits.
func (m *model) release(t *rapid.T) {
	if len(m.tickets) == 0 {
		return
	}
	at := rapid.IntRange(0, len(m.tickets)-1).Draw(t, "which")
	m.tickets[at].Release()
	if rapid.Bool().Draw(t, "again") {
		m.tickets[at].Release()
	}
	m.tickets = slices.Delete(m.tickets, at, at+1)
}

func (m *model) toggle(*rapid.T) {
	m.busy.Store(!m.busy.Load())
	m.q.tellAll()
}

func (m *model) check(t *rapid.T) {
	q := m.q
	q.mu.Lock()
	defer q.mu.Unlock()
	runs, waits := map[string]int{}, map[string]int{}
	var queued []*Ticket
	for _, ticket := range m.tickets {
		name := ticket.tenant.name
		switch ticket.state {
		case running:
			runs[name]++
			q.mustHaveGoneFirst(t, ticket, m)
		case waiting:
			waits[name]++
			queued = append(queued, ticket)
		default:
			t.Fatalf("a ticket that nobody released is gone")
		}
	}
	bytes := map[string]int64{}
	for _, ticket := range queued {
		bytes[ticket.tenant.name] += ticket.bytes
	}
	for name, tn := range q.tenants {
		if tn.bytes != bytes[name] {
			t.Fatalf("%s: %d bytes wait, it counts %d", name, bytes[name], tn.bytes)
		}
		bytes[""] += tn.bytes
	}
	if q.bytes != bytes[""] {
		t.Fatalf("%d bytes wait, it counts %d", bytes[""], q.bytes)
	}
	total := 0
	for name, n := range runs {
		total += n
		if limit := m.limits[name].MaxRunning; limit > 0 && n > limit {
			t.Fatalf("%s runs %d, over its limit of %d", name, n, limit)
		}
	}
	if m.opts.Slots > 0 && total > m.opts.Slots {
		t.Fatalf("%d run on %d slots", total, m.opts.Slots)
	}
	if q.running != total || q.waiting != len(queued) {
		t.Fatalf("it counts %d running and %d queued, there are %d and %d", q.running, q.waiting, total, len(queued))
	}
	free := m.opts.Slots == 0 || total < m.opts.Slots
	for name := range waits {
		if limit := m.limits[name].MaxRunning; free && !m.busy.Load() && (limit == 0 || runs[name] < limit) {
			t.Fatalf("a build of %s waits though a slot is free", name)
		}
	}
	m.checkOrder(t, queued)
	if len(q.tenants) > len(runs)+len(waits) || len(q.backlog) != len(waits) {
		t.Fatalf("%d tenants are kept and %d of them wait; %v run, %v wait", len(q.tenants), len(q.backlog), runs, waits)
	}
}

// mustHaveGoneFirst checks, once for each build that got a slot, that no build of
// its tenant had a better claim.
func (q *Queue) mustHaveGoneFirst(t *rapid.T, ticket *Ticket, m *model) {
	if slices.Contains(m.ran, ticket) {
		return
	}
	m.ran = append(m.ran, ticket)
	for _, other := range ticket.tenant.waiting {
		if before(other, ticket) < 0 {
			t.Fatalf("priority %d, build %d went before priority %d, build %d",
				ticket.priority, ticket.sequence, other.priority, other.sequence)
		}
	}
}

// checkOrder checks that the order holds all that wait, and agrees with the
// position of each and with the order within its tenant.
func (m *model) checkOrder(t *rapid.T, queued []*Ticket) {
	order := m.q.order()
	if len(order) != len(queued) {
		t.Fatalf("the order has %d builds, %d wait", len(order), len(queued))
	}
	last := map[*tenant]*Ticket{}
	for i, ticket := range order {
		if !slices.Contains(queued, ticket) {
			t.Fatal("the order has a build that does not wait")
		}
		if at := m.q.position(ticket); at != i+1 {
			t.Fatalf("the build at %d of the order says that it is at %d", i+1, at)
		}
		if former := last[ticket.tenant]; former != nil && before(former, ticket) > 0 {
			t.Fatalf("%s: build %d before build %d", ticket.tenant.name, former.sequence, ticket.sequence)
		}
		last[ticket.tenant] = ticket
	}
}

// Never over a limit, nobody lost or admitted twice, no slot idle while a build
// may have it, the order of each tenant kept, and nothing left in the end.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		t.Repeat(map[string]func(*rapid.T){"enter": m.enter, "release": m.release, "toggle": m.toggle, "": m.check})
		for _, ticket := range m.tickets {
			ticket.Release()
		}
		if q := m.q; len(q.tenants) != 0 || len(q.backlog) != 0 || q.running != 0 || q.waiting != 0 {
			t.Fatalf("all have left, and it holds %+v", q)
		}
	})
}

// draw makes tenants of random weights that always have builds waiting.
func draw(t *rapid.T, slots int) (q *Queue, names []string, weights map[string]int, sum int) {
	weights = map[string]int{}
	for range rapid.IntRange(1, 6).Draw(t, "tenants") {
		name := string(rune('a' + len(names)))
		names = append(names, name)
		weights[name] = rapid.IntRange(1, 9).Draw(t, "weight")
		sum += weights[name]
	}
	return New(Options{Slots: slots, Limits: func(tenant string) Limits { return Limits{Weight: weights[tenant]} }}), names, weights, sum
}

// However the builds end, no tenant with a backlog ever has a whole slot more or
// less than its share.
func TestSharesAreWithinOneSlot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots := rapid.IntRange(1, 12).Draw(t, "slots")
		q, names, weights, sum := draw(t, slots)
		start := fill(t, q, slots)
		var tickets []*Ticket
		const rounds = 60
		for range slots + rounds {
			for _, name := range names {
				tickets = append(tickets, enter(t, q, name, 0))
			}
		}
		start()
		for range rounds {
			runs := map[string]int{}
			var candidates []int
			for i, ticket := range tickets {
				if ticket.state == running {
					runs[ticket.tenant.name]++
					candidates = append(candidates, i)
				}
			}
			for _, name := range names {
				ideal := float64(slots*weights[name]) / float64(sum)
				if math.Abs(float64(runs[name])-ideal) >= 1 {
					t.Fatalf("%s has %d of %d slots, its share is %.2f; all: %v of weights %v", name, runs[name], slots, ideal, runs, weights)
				}
			}
			at := rapid.SampledFrom(candidates).Draw(t, "which")
			tickets[at].Release()
		}
	})
}

// With one slot the tenants take turns, by their weights: none gets one build more
// than the weights give it, beside any other.
func TestTurnsFollowTheWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q, names, weights, _ := draw(t, 1)
		start := fill(t, q, 1)
		const rounds = 100
		var tickets []*Ticket
		for range rounds {
			for _, name := range names {
				tickets = append(tickets, enter(t, q, name, 0))
			}
		}
		start()
		served := map[string]int{}
		for range rounds {
			at := slices.IndexFunc(tickets, func(ticket *Ticket) bool { return ticket.state == running })
			served[tickets[at].tenant.name]++
			for _, a := range names {
				for _, b := range names {
					if (served[a]-1)*weights[b] > served[b]*weights[a] {
						t.Fatalf("%s ran %d and %s ran %d, by weights %v", a, served[a], b, served[b], weights)
					}
				}
			}
			tickets[at].Release()
		}
	})
}

// The first in the order is who gets the next slot that others leave.
func TestFirstInOrderIsNext(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots := rapid.IntRange(1, 6).Draw(t, "slots")
		q, names, _, _ := draw(t, slots)
		held := []*Ticket{}
		for range slots {
			held = append(held, enter(t, q, "filler", 0))
		}
		for range rapid.IntRange(1, 20).Draw(t, "builds") {
			enter(t, q, rapid.SampledFrom(names).Draw(t, "tenant"), rapid.IntRange(0, 2).Draw(t, "priority"))
		}
		for _, ticket := range held {
			order := q.order()
			ticket.Release()
			if len(order) > 0 && order[0].state != running {
				t.Fatalf("the first, of %s, was passed over", order[0].tenant.name)
			}
		}
	})
}
