package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// A client makes the calls of one build (Solve, Status, those of the frontend) at
// the same time, and they arrive in any order. What they share is BuildKit's ref.
const (
	// arriveWithin is how long a frontend's call waits for the Solve of its build.
	arriveWithin = 5 * time.Second
	// lingerFor is how long it is known that a Solve has ended, so that calls which
	// come after it are answered at once: the daemon would look for the build for
	// seconds.
	lingerFor = 10 * time.Second
)

// solves knows the solves that are under way through the gateway, by ref. A solve
// is there while a call is that names it, and for lingerFor after its end.
type solves struct {
	mu    sync.Mutex
	byRef map[string]*solve
}

func newSolves() *solves { return &solves{byRef: make(map[string]*solve)} }

// enter returns the solve with a ref, whether its Solve has come or is still to
// come. leave must be called.
func (t *solves) enter(ref string) *solve {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byRef[ref]
	if s == nil {
		s = newSolve(ref)
		t.byRef[ref] = s
	}
	s.calls++
	return s
}

func (t *solves) leave(s *solve) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.calls--; s.calls == 0 {
		delete(t.byRef, s.ref)
	}
}

// linger is leave for the Solve itself.
func (t *solves) linger(s *solve) { time.AfterFunc(lingerFor, func() { t.leave(s) }) }

// solve is one build as its calls see it: expected, come, perhaps queued, sent to
// the daemon, ended.
type solve struct {
	ref   string
	calls int // that name it; guarded by solves.mu

	come chan struct{}   // closed when its Solve has come
	held context.Context //nolint:containedctx // done when the daemon does not get it at once: a state that calls can follow
	sent chan struct{}   // closed when it has gone to the daemon, or never will
	cut  context.Context //nolint:containedctx // done, with a cause, when it was ended before its time

	setHeld context.CancelFunc
	setCut  context.CancelCauseFunc

	mu      sync.Mutex
	owner   clientID
	place   build.Waiting // while it waits
	changed chan struct{} // closed when place changes, and then made anew
	state   solveState
	refused bool // it has ended, and the daemon never had it
	joined  int  // solves that took no turn because this one has one
}

// clientID says whose a solve is: calls of another identity have no business with
// it, and a connection is one client program.
type clientID struct {
	identity, connection string
}

type solveState int

const (
	isExpected solveState = iota
	hasCome
	isSent
	hasEnded
)

func newSolve(ref string) *solve {
	s := &solve{ref: ref, come: make(chan struct{}), sent: make(chan struct{}), changed: make(chan struct{})}
	s.held, s.setHeld = context.WithCancel(context.Background())
	s.cut, s.setCut = context.WithCancelCause(context.Background())
	return s
}

// arrive says that the Solve has come. It is false when another has come before.
func (s *solve) arrive(owner clientID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != isExpected {
		return false
	}
	s.owner, s.state = owner, hasCome
	close(s.come)
	return true
}

// waits says where the build stands in the queue.
func (s *solve) waits(w build.Waiting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.place = w
	close(s.changed)
	s.changed = make(chan struct{})
	s.setHeld()
}

// standing returns where the build stands in the queue, and what is closed when
// that changes.
func (s *solve) standing() (build.Waiting, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.place, s.changed
}

// send says that the Solve goes to the daemon.
func (s *solve) send() { s.advance(isSent) }

// end says that the Solve has ended. When the daemon never had it, the other calls
// of the build get the same error.
func (s *solve) end(err error) {
	if !s.running() {
		s.setCut(err)
	}
	s.advance(hasEnded)
}

func (s *solve) advance(to solveState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state < isSent {
		s.refused = to == hasEnded
		close(s.sent)
	}
	s.state = to
	if s.refused {
		s.setHeld()
	}
}

// waiting reports whether the build waits for its turn.
func (s *solve) waiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == hasCome && s.held.Err() != nil
}

// expected reports whether the Solve is still to come.
func (s *solve) expected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == isExpected
}

// ended reports whether the Solve has ended.
func (s *solve) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == hasEnded
}

// wasRefused reports whether the build has ended without the daemon.
func (s *solve) wasRefused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// running reports whether the daemon has the solve.
func (s *solve) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == isSent
}

// belongs reports whether an identity may make calls of the build.
func (s *solve) belongs(identity string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owner.identity == identity
}

// mostJoined bounds how many solves may come without a turn beside one that has
// one.
const mostJoined = 32

// join lets a solve go ahead beside one that its client is running, and reports
// whether there is one.
func (t *solves) join(s *solve) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, other := range t.byRef {
		if other != s && other.takes(s.owner) {
			return true
		}
	}
	return false
}

// takes reports whether a solve of a client may go ahead beside this one.
func (s *solve) takes(owner clientID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != isSent || s.owner != owner || s.joined == mostJoined {
		return false
	}
	s.joined++
	return true
}
