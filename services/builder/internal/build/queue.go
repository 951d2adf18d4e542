package build

import (
	"sync"
	"time"
)

// queue holds the events of a build between the solve, which must never wait
// for a slow reader (BuildKit ends a session whose status is not drained), and
// the one reader. It numbers and dates them.
type queue struct {
	mu     sync.Mutex
	more   sync.Cond
	events []Event
	seq    uint64
	closed bool
}

func newQueue() *queue {
	q := &queue{}
	q.more.L = &q.mu
	return q
}

func (q *queue) push(kind any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.seq++
	q.events = append(q.events, Event{Sequence: q.seq, Time: time.Now(), Kind: kind})
	q.more.Signal()
}

// pushed returns the sequence number of the last event.
func (q *queue) pushed() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.seq
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.more.Signal()
}

// next waits for the next event. It reports false once the queue is closed and
// empty. Its wait is bounded by that of the solve, which closes the queue.
func (q *queue) next() (Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.events) == 0 && !q.closed {
		q.more.Wait()
	}
	if len(q.events) == 0 {
		return Event{}, false
	}
	event := q.events[0]
	q.events[0] = Event{}
	q.events = q.events[1:]
	return event, true
}
