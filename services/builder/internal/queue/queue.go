// Package queue decides whose build runs when.
//
// Builds of many tenants share few slots. Each tenant that waits has a share of
// the slots by its weight, and within a tenant the higher priority goes first,
// then who came first. See turn.go for the rule.
package queue

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Limits are those of one tenant.
type Limits struct {
	MaxRunning int // builds at once; 0: no limit but the queue's
	MaxQueued  int // builds that wait; 0: no limit but the queue's
	Weight     int // share of the slots beside other tenants that wait; 0: 1
	// MaxQueuedBytes bounds what the builds that wait hold in memory; 0: no limit
	// but the queue's.
	MaxQueuedBytes int64
}

// Options says what a queue admits.
type Options struct {
	Slots     int                        // builds at once; 0: no limit
	MaxQueued int                        // builds that wait, of all tenants; 0: no limit
	Limits    func(tenant string) Limits // asked when a tenant comes; nil: none
	// MaxQueuedBytes bounds what the builds that wait hold in memory, of all
	// tenants; 0: no limit.
	MaxQueuedBytes int64
	// Busy says why no build may be given a slot now, in words, and "" when one
	// may. It must return at once and not call the queue. It is asked again four
	// times a second while builds wait for it. Nil: never busy.
	Busy func() string
}

// Entry is a build that wants a slot.
type Entry struct {
	Tenant   string
	Priority int   // higher goes first, among the builds of the tenant
	Bytes    int64 // that it holds in memory while it waits
}

// Stats counts builds.
type Stats struct {
	Running, Queued int
}

// Queue gives slots to builds. It runs no goroutine of its own but for the
// moment in which it tells those that wait where they stand.
type Queue struct {
	opts Options

	mu       sync.Mutex
	tenants  map[string]*tenant // those with builds
	backlog  []*tenant          // those with builds that wait
	running  int
	waiting  int
	bytes    int64   // of those that wait
	sequence uint64  // of the last entry
	clock    float64 // virtual time; see turn.go
	busy     string  // what Busy said last, when a slot was free
	closed   bool    // no slot is given any more

	tellAt *time.Timer // set when places have changed and nobody was told
	toldAt time.Time   // when the places were told last
}

// New returns an empty queue.
func New(opts Options) *Queue {
	if opts.Limits == nil {
		opts.Limits = func(string) Limits { return Limits{} }
	}
	if opts.Busy == nil {
		opts.Busy = func() string { return "" }
	}
	return &Queue{opts: opts, tenants: map[string]*tenant{}}
}

// Enter takes a slot, or a place among those that wait. When too many wait, it
// returns a RESOURCE_EXHAUSTED fault that names the limit. Release the ticket.
func (q *Queue) Enter(e Entry) (*Ticket, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.add(e)
	if t.state == waiting {
		if err := q.overfull(t.tenant); err != nil {
			q.leave(t)
			return nil, err
		}
	}
	return t, nil
}

// Readmit is Enter for a build that was admitted before a restart: it is never
// refused. Those that waited keep their order when they are readmitted in it.
func (q *Queue) Readmit(e Entry) *Ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.add(e)
}

// Close gives out no slot any more. Those that wait go on waiting, until they are
// released.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}

// Stats returns how many builds have a slot and how many wait.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return Stats{Running: q.running, Queued: q.waiting}
}

// retryAfter is when a refused caller should come again. Builds take seconds to
// minutes.
const retryAfter = 5 * time.Second

// overfull returns an error when more builds wait than may.
func (q *Queue) overfull(tn *tenant) error {
	full := func(message, limit, remedy string) error {
		err := fault.New(fault.ResourceExhausted, "LIMIT_REACHED", message, remedy)
		err.RetryAfter, err.Metadata = retryAfter, map[string]string{"limit": limit}
		return err
	}
	const ofTenant = "admission.tenants or admission.defaults"
	if limit := tn.limits.MaxQueued; limit > 0 && len(tn.waiting) > limit {
		return full(fmt.Sprintf("tenant %q has %s waiting, its limit (max_queued of %s)", tn.name, builds(limit), ofTenant),
			"admission.tenants", "try again when some of them have run, or raise the tenant's max_queued")
	}
	if limit := tn.limits.MaxQueuedBytes; limit > 0 && tn.bytes > limit {
		return full(fmt.Sprintf("the requests of the builds of tenant %q that wait would have %d bytes, its limit is %d (max_queued_bytes of %s)",
			tn.name, tn.bytes, limit, ofTenant),
			"admission.tenants", "try again when some of them have run, send large contexts with UploadContext, or raise the tenant's max_queued_bytes")
	}
	if limit := q.opts.MaxQueued; limit > 0 && q.waiting > limit {
		return full(fmt.Sprintf("the builder has %s waiting, its limit (admission.max_queued)", builds(limit)),
			"admission.max_queued", "try again later, or raise admission.max_queued of the builder")
	}
	if limit := q.opts.MaxQueuedBytes; limit > 0 && q.bytes > limit {
		return full(fmt.Sprintf("the requests of all builds that wait would have %d bytes, the limit is %d (admission.max_queued_bytes)", q.bytes, limit),
			"admission.max_queued_bytes", "try again later, send large contexts with UploadContext, or raise admission.max_queued_bytes of the builder")
	}
	return nil
}

// add makes a ticket, which has a slot already when one is free for it.
func (q *Queue) add(e Entry) *Ticket {
	tn := q.tenants[e.Tenant]
	if tn == nil {
		limits := q.opts.Limits(e.Tenant)
		tn = &tenant{name: e.Tenant, limits: limits, weight: max(1, limits.Weight)}
		q.tenants[e.Tenant] = tn
	}
	if len(tn.waiting) == 0 {
		q.backlog = append(q.backlog, tn)
	}
	q.sequence++
	t := &Ticket{
		queue: q, tenant: tn, priority: e.Priority, bytes: e.Bytes, sequence: q.sequence,
		settled: make(chan struct{}), news: make(chan Place, 1),
	}
	at, _ := slices.BinarySearchFunc(tn.waiting, t, before)
	tn.waiting = slices.Insert(tn.waiting, at, t)
	q.waiting++
	q.bytes += e.Bytes
	tn.bytes += e.Bytes
	q.admit()
	return t
}

// admit gives the free slots to those whose turn it is, and has the others told.
func (q *Queue) admit() {
	for q.busy = ""; !q.closed && q.waiting > 0 && q.free() > 0; {
		if q.busy = q.opts.Busy(); q.busy != "" {
			break
		}
		next := q.next()
		if next == nil {
			break // All that wait are of tenants at their limit.
		}
		q.unqueue(next)
		next.state = running
		next.tenant.running++
		q.running++
	}
	q.tellLater()
}

// free is how many slots are free.
func (q *Queue) free() int {
	if q.opts.Slots <= 0 {
		return unlimited
	}
	return max(0, q.opts.Slots-q.running)
}

const unlimited = 1 << 30

// leave ends a ticket, and gives what it had to the next one.
func (q *Queue) leave(t *Ticket) {
	tn := t.tenant
	switch t.state {
	case waiting:
		q.unqueue(t)
	case running:
		tn.running--
		q.running--
	case left:
		return
	}
	t.state = left
	if tn.running == 0 && len(tn.waiting) == 0 {
		delete(q.tenants, tn.name)
	}
	q.admit()
}

// unqueue takes a ticket out of those that wait.
func (q *Queue) unqueue(t *Ticket) {
	t.hush()
	close(t.settled)
	tn := t.tenant
	at, _ := slices.BinarySearchFunc(tn.waiting, t, before)
	tn.waiting = slices.Delete(tn.waiting, at, at+1)
	q.waiting--
	q.bytes -= t.bytes
	tn.bytes -= t.bytes
	if len(tn.waiting) == 0 {
		tn.waiting = nil
		at := slices.Index(q.backlog, tn)
		q.backlog = slices.Delete(q.backlog, at, at+1)
	}
}

func builds(n int) string {
	if n == 1 {
		return "1 build"
	}
	return fmt.Sprintf("%d builds", n)
}
