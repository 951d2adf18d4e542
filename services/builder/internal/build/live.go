package build

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Causes of a build's end.
var (
	errCallerGone = errors.New("the caller ended the call")
	errCancelled  = errors.New("the build was cancelled")
)

// How events are written. A build's events wait for the commit before theirs, so
// that a busy build makes few large commits; between commits is at least
// commitEvery, but for the outcome. What waits is bounded by maxPending.
const (
	commitEvery = 50 * time.Millisecond
	retryEvery  = time.Second
	maxPending  = 64 << 20 // bytes
	keepRecent  = 1 << 20  // bytes of frames, for readers that keep up
)

// live is a build that has not ended. Its solve pushes events and never waits:
// BuildKit ends a session whose status is not drained. One goroutine stores
// them, and only what is stored is shown to readers.
type live struct {
	service *Service
	ctx     context.Context //nolint:containedctx // the build's own life, which outlasts the call
	cancel  context.CancelCauseFunc
	stop    func() bool
	resumed bool          // an earlier process took it
	wake    chan struct{} // something is to be stored
	hurry   chan struct{} // it is not to wait for more
	done    chan struct{} // closed when the last is stored, or the build was left

	mu        sync.Mutex
	rec       Record
	version   uint64 // of rec: how often it has changed
	settled   uint64 // the version that is stored
	pending   []Event
	size      int           // bytes in pending, about
	written   int           // bytes of all events, about
	changed   chan struct{} // closed when there is more to read, and then made anew
	stored    uint64        // sequence number of the last event that is stored
	recent    []Frame       // the last of them, without gaps
	recentLen int           // bytes
	final     bool          // the outcome is pushed
	left      bool          // the builder stops, and the build goes on when it is back
	callers   int           // calls of Build that watch it
	expiry    *time.Timer   // ends a build that no call watches; may be nil
	unstored  bool          // the store refuses the build's events: only its end is still to come
	refusal   *Failure      // why; set with unstored

	graph []StepEvent // how the steps of the last attempt ended; set before the outcome is pushed

	end error // how it ended for readers: nil after the outcome; set before done is closed
}

// enliven makes a record that is stored live. Its life has the values of ctx,
// not its end.
func (s *Service) enliven(ctx context.Context, rec Record) *live {
	l := &live{
		service: s, rec: rec, stored: rec.LastSeq, wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), done: make(chan struct{}), changed: make(chan struct{}),
	}
	l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	l.stop = context.AfterFunc(s.open, func() { l.cancel(context.Cause(s.open)) })
	s.mu.Lock()
	s.live[rec.ID] = l
	s.born(rec.ID)
	if s.stopping { // since the call came in
		l.cancel(errInterrupted)
	}
	s.mu.Unlock()
	s.runs.Go(l.store)
	return l
}

func (l *live) record() Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec
}

// push adds an event, and with it what change says of the record.
func (l *live) push(kind any, change ...func(*Record)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kind, keep := l.bounded(kind)
	if l.final || !keep {
		return // a daemon that says something after the end, or more than is kept
	}
	for _, c := range change {
		c(&l.rec)
	}
	outcome, isOutcome := kind.(Outcome)
	if l.unstored {
		if isOutcome {
			l.endUnstored(outcome)
		}
		return
	}
	l.rec.LastSeq++
	l.pending = append(l.pending, Event{Sequence: l.rec.LastSeq, Time: time.Now(), Kind: kind})
	l.size += sizeOf(kind)
	l.written += sizeOf(kind)
	l.version++
	if l.final = isOutcome; l.final {
		signal(l.hurry)
	}
	if l.size > maxPending {
		l.cancel(fault.New(fault.ResourceExhausted, "DISK_FULL", "the builder cannot store what the build writes",
			"free disk under state_dir of the builder; its log says what is wrong"))
	}
	signal(l.wake)
}

// update changes the record without an event.
func (l *live) update(change func(*Record)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.rec)
	l.version++
	signal(l.wake)
}

// settle waits until the record as it is now is stored.
func (l *live) settle(ctx context.Context) error {
	want := uint64(0)
	for {
		l.mu.Lock()
		if want == 0 {
			want = l.version
		}
		settled, changed := l.settled >= want, l.changed
		l.mu.Unlock()
		if settled {
			return nil
		}
		signal(l.hurry)
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.done:
			return l.end
		}
	}
}

// abandon ends the life of a build that goes on when the builder is back.
func (l *live) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = true
	signal(l.wake)
	signal(l.hurry)
}

// signal tells whoever waits on a channel of one place, now or later.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
