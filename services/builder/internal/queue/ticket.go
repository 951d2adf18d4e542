package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// state is where a ticket stands.
type state int

const (
	waiting state = iota
	running
	left
)

// Ticket is the place of one build, and then its slot.
type Ticket struct {
	queue    *Queue
	tenant   *tenant
	priority int
	bytes    int64
	sequence uint64
	settled  chan struct{} // closed when it no longer waits
	news     chan Place    // where it stands now, unless that was taken

	// Of the queue's lock.
	state state
	told  Place
}

// Place is where a build stands that waits.
type Place struct {
	Position int    // from 1, among all that wait, in the order in which they would be admitted now
	Reason   string // what it waits for, in words
}

// Wait returns nil once the build has a slot. While it waits, notify is called
// with its place, at first and then whenever that changes, a few times a second
// at most, from this goroutine. When ctx ends, the build leaves the queue, or
// gives back its slot, and Wait returns the cause. notify may be nil.
func (t *Ticket) Wait(ctx context.Context, notify func(Place)) error {
	if notify == nil {
		notify = func(Place) {}
	}
	t.queue.tellNow(t)
	for {
		select {
		case place := <-t.news:
			notify(place)
			continue
		case <-ctx.Done():
		case <-t.settled:
		}
		if ctx.Err() != nil {
			t.Release()
			return context.Cause(ctx)
		}
		if t.queue.stateOf(t) == left {
			return fault.New(fault.Canceled, "CANCELLED", "the build left the queue", "build again")
		}
		return nil
	}
}

// Release gives the slot back, or leaves the queue, and lets the next build in.
// It may be called again.
func (t *Ticket) Release() {
	t.queue.mu.Lock()
	defer t.queue.mu.Unlock()
	t.queue.leave(t)
}

func (q *Queue) stateOf(t *Ticket) state {
	q.mu.Lock()
	defer q.mu.Unlock()
	return t.state
}

// How often those that wait are told where they stand: every tellEvery, and less
// often when many wait, so that ten thousand of them cost as much as one.
const (
	tellEvery    = 250 * time.Millisecond
	tellEveryOne = 100 * time.Microsecond
)

// tellLater has all that wait told of their places, once it is time.
func (q *Queue) tellLater() {
	switch {
	case q.waiting == 0 && q.tellAt != nil && q.tellAt.Stop():
		q.tellAt = nil
	case q.waiting > 0 && q.tellAt == nil:
		pause := tellEvery + time.Duration(q.waiting)*tellEveryOne
		q.tellAt = time.AfterFunc(time.Until(q.toldAt.Add(pause)), q.tellAll)
	}
}

// tellAll tells all that wait of their places, where these have changed. While
// the queue is busy it comes again, for nothing else says when that ends.
func (q *Queue) tellAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.toldAt = time.Now()
	q.admit()
	q.tellAt = nil
	for _, tn := range q.backlog {
		tn.reason = q.reason(tn)
	}
	for i, t := range q.order() {
		t.tell(Place{Position: i + 1, Reason: t.tenant.reason})
	}
	if q.busy != "" {
		q.tellLater()
	}
}

// tellNow tells one ticket of its place, if it waits.
func (q *Queue) tellNow(t *Ticket) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.state == waiting {
		t.tell(Place{Position: q.position(t), Reason: q.reason(t.tenant)})
	}
}

// tell leaves a place for Wait to take, instead of one that it has not taken.
func (t *Ticket) tell(place Place) {
	if place == t.told {
		return
	}
	t.hush()
	t.told = place
	t.news <- place
}

// hush takes back what Wait has not taken.
func (t *Ticket) hush() {
	select {
	case <-t.news:
	default:
	}
}

// reason says what the builds of a tenant wait for.
func (q *Queue) reason(tn *tenant) string {
	switch {
	case tn.full():
		return fmt.Sprintf("tenant %q runs %s, its limit (max_running of admission.tenants or admission.defaults)", tn.name, builds(tn.running))
	case q.free() == 0:
		return fmt.Sprintf("the builder runs %s, its limit (max_running_builds)", builds(q.running))
	default:
		return q.busy
	}
}
