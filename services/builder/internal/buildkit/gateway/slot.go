package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// slot is the right of one build to have its daemon work. A client that runs its
// frontend by itself may wait in its own program for other builds of it: a target of
// a bake for the targets that it needs, or for all of them before any is exported.
// The daemon has nothing to do for such a build, so it gives its slot back, and
// acquires one again before its frontend's next call is passed on. So a client
// cannot wait for a build that waits for its own slot, whatever the number of slots.
type slot struct {
	queue *contention
	owner owner
	build slotted
	life  context.Context //nolint:containedctx // of the build: resuming outlasts a call

	mu       sync.Mutex
	held     bool
	working  int           // calls that the daemon works on
	idle     time.Time     // since when it works on none
	resuming chan struct{} // closed when the slot is back, or never will be; nil when nobody acquires it
	check    *time.Timer
	ended    bool
}

// slotted is a build that has a slot; see build.Observed.
type slotted interface {
	// Yield gives the slot back.
	Yield()
	// Resume waits for a slot. It ends with the cause of ctx.
	Resume(ctx context.Context) error
}

var _ slotted = (*build.Observed)(nil)

// When a slot that is not used is given back: soon when another build of the same
// client waits, which may be the one that this build waits for; later for any other,
// so that a client that is far away does not wait again for each of its calls.
const (
	lendToOwn    = 100 * time.Millisecond
	lendToOthers = 2 * time.Second
)

// newSlot returns the slot of a build that has one. A build whose frontend the daemon
// runs works until its end.
func newSlot(life context.Context, queue *contention, of owner, b slotted, clientRuns bool) *slot {
	s := &slot{queue: queue, owner: of, build: b, life: life, held: true, idle: time.Now()}
	if !clientRuns {
		s.working = 1
	}
	s.mu.Lock() // look reads check
	defer s.mu.Unlock()
	s.check = time.AfterFunc(lendToOwn, s.look)
	return s
}

// acquire waits until the daemon may work on a call of the build. release must be
// called unless it returns an error.
func (s *slot) acquire(ctx context.Context) error {
	s.mu.Lock()
	s.working++
	for !s.held && !s.ended {
		if s.resuming == nil {
			s.resuming = make(chan struct{})
			back := s.resuming
			lifecycle.Go(s.life, func(context.Context) { s.resume(back) })
		}
		back := s.resuming
		s.mu.Unlock()
		select {
		case <-back:
		case <-ctx.Done():
			s.release()
			return context.Cause(ctx)
		case <-s.life.Done():
			s.release()
			return context.Cause(s.life)
		}
		s.mu.Lock()
	}
	s.mu.Unlock()
	return nil
}

func (s *slot) resume(back chan struct{}) {
	done := s.queue.waits(s.owner)
	err := s.build.Resume(s.life)
	done()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resuming = nil
	close(back)
	switch {
	case s.ended:
		s.build.Yield()
	case err == nil:
		s.queue.returned(s.owner)
		s.held = true
		s.check.Reset(lendToOwn)
	}
}

// release notes that the daemon no longer works on a call.
func (s *slot) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.working--
	s.idle = time.Now()
}

// keep notes that the daemon works until the end of the build: its client has
// returned the result of its frontend.
func (s *slot) keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.working++
}

// end ends the slot with the build.
func (s *slot) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.held && !s.ended {
		s.queue.returned(s.owner)
	}
	s.ended = true
	s.check.Stop()
}

// look gives the slot back if it is not used and another build waits for one.
func (s *slot) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || !s.held {
		return
	}
	idle := time.Since(s.idle)
	lends := s.working == 0 && (idle >= lendToOwn && s.queue.own(s.owner) || idle >= lendToOthers && s.queue.any())
	if lends && s.queue.lent(s.owner) {
		s.held = false
		s.build.Yield()
		return
	}
	s.check.Reset(lendToOwn)
}

// contention counts the builds that wait for slots, and those that have given theirs
// back, by client.
type contention struct {
	all func() int // that wait, those by RPC included

	mu      sync.Mutex
	waiting map[owner]int
	given   map[string]int // by identity
}

func newContention(all func() int) *contention {
	return &contention{all: all, waiting: make(map[owner]int), given: make(map[string]int)}
}

// maxGiven bounds the builds of one identity that have given their slots back: the
// daemon holds each of them in memory.
const maxGiven = 4096

// waits counts a build that waits until done is called.
func (q *contention) waits(of owner) (done func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting[of]++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.waiting[of]--; q.waiting[of] == 0 {
			delete(q.waiting, of)
		}
	}
}

func (q *contention) own(of owner) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting[of] > 0
}

func (q *contention) any() bool { return q.all() > 0 }

// lent counts a build that gives its slot back, unless its identity has too many.
func (q *contention) lent(of owner) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.given[of.identity] >= maxGiven {
		return false
	}
	q.given[of.identity]++
	return true
}

// returned counts a build that has its slot again, or has ended without.
func (q *contention) returned(of owner) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.given[of.identity]--; q.given[of.identity] == 0 {
		delete(q.given, of.identity)
	}
}
