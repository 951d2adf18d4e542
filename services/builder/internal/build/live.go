package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
	l.rec.LastSeq++
	l.pending = append(l.pending, Event{Sequence: l.rec.LastSeq, Time: time.Now(), Kind: kind})
	l.size += sizeOf(kind)
	l.written += sizeOf(kind)
	l.version++
	if _, l.final = kind.(Outcome); l.final {
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

// attach counts a call that watches the build and on whose end it may end.
func (l *live) attach() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.callers++
	l.stopExpiry()
}

func (l *live) stopExpiry() {
	if l.expiry != nil {
		l.expiry.Stop()
		l.expiry = nil
	}
}

// detach makes the build go on without callers.
func (l *live) detach() {
	l.update(func(rec *Record) { rec.Detached = true })
}

// leave takes back attach. The last call that goes ends the build.
func (l *live) leave(ctx context.Context) {
	cause := errCallerGone
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		cause = context.DeadlineExceeded
	}
	l.mu.Lock()
	l.callers--
	last := l.callers == 0 && !l.rec.Detached && !l.final
	again := l.rec.RequestID != ""
	l.mu.Unlock()
	switch {
	case !last:
	case again:
		l.expire(cause)
	default:
		l.cancel(cause)
		<-l.done
	}
}

// expire ends the build unless a caller comes for it soon.
func (l *live) expire(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopExpiry()
	l.expiry = time.AfterFunc(comeBack, func() {
		l.mu.Lock()
		alone := l.callers == 0 && !l.rec.Detached
		l.mu.Unlock()
		if alone {
			l.cancel(cause)
		}
	})
}

// store writes what is pushed until the outcome is written, or the build is left.
func (l *live) store() {
	defer l.bury()
	for {
		<-l.wake
		b := l.take()
		if len(b.events) == 0 && !b.last && b.version == b.settled {
			continue
		}
		if err := l.commit(b); err != nil || b.last {
			l.end = cmp.Or(err, l.goodbye())
			return
		}
		select {
		case <-time.After(commitEvery):
		case <-l.hurry:
		}
	}
}

// goodbye is what readers of a build get that goes on later; nil after an outcome.
func (l *live) goodbye() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.final {
		return nil
	}
	return errGoesOn
}

// batch is what one commit writes.
type batch struct {
	events           []Event
	rec              Record
	version, settled uint64
	last             bool // nothing comes after it
}

func (l *live) take() batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := batch{events: l.pending, rec: l.rec, version: l.version, settled: l.settled, last: l.final || l.left}
	l.pending, l.size = nil, 0
	return b
}

// commit stores a batch, again and again while the disk has no room, and shows
// it to readers. Its error says that the build can no longer be written to.
func (l *live) commit(b batch) error {
	frames, err := l.encode(b.events)
	ctx := context.WithoutCancel(l.ctx)
	for try := 0; err == nil; try++ {
		bounded, cancel := context.WithTimeout(ctx, storeTimeout)
		err = l.service.Store.Commit(bounded, b.rec, frames)
		cancel()
		if err == nil {
			l.publish(frames, b.version)
			return nil
		}
		if errors.Is(err, ErrFinal) || errors.Is(err, ErrUnknown) {
			break
		}
		if try == 0 {
			l.service.Log.ErrorContext(ctx, "a build's events cannot be stored; trying again", "build", b.rec.ID, "error", err)
		}
		select {
		case <-l.service.open.Done():
			// Stopping: the next start finds the build not ended, and ends it.
		case <-time.After(retryEvery):
			err = nil
		}
	}
	l.service.Log.ErrorContext(ctx, "a build's events are lost", "build", b.rec.ID, "error", err)
	lost := fault.Wrap(err, fault.Internal, "INTERNAL", "the builder cannot store the build", "read the builder's log")
	l.cancel(lost)
	return lost
}

// storeTimeout bounds one write to the store.
const storeTimeout = 30 * time.Second

func (l *live) encode(events []Event) ([]Frame, error) {
	frames := make([]Frame, len(events))
	for i, event := range events {
		data, err := l.service.Encode(event)
		if err != nil {
			return nil, fmt.Errorf("encoding event %d: %w", event.Sequence, err)
		}
		frames[i] = Frame{Sequence: event.Sequence, Data: data}
	}
	return frames, nil
}

// publish shows frames that are stored to readers.
func (l *live) publish(frames []Frame, version uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settled = version
	defer func() {
		close(l.changed)
		l.changed = make(chan struct{})
	}()
	if len(frames) == 0 {
		return
	}
	l.stored = frames[len(frames)-1].Sequence
	for _, f := range frames {
		l.recentLen += len(f.Data)
	}
	l.recent = append(l.recent, frames...)
	drop := 0
	for l.recentLen > keepRecent && drop < len(l.recent)-1 {
		l.recentLen -= len(l.recent[drop].Data)
		drop++
	}
	if drop > 0 { // into a new array: readers may still have the old one
		l.recent = append([]Frame(nil), l.recent[drop:]...)
	}
}

// bury ends the life: nothing more is written.
func (l *live) bury() {
	l.stop()
	l.cancel(nil)
	l.mu.Lock()
	l.stopExpiry()
	l.mu.Unlock()
	l.service.mu.Lock()
	delete(l.service.live, l.rec.ID)
	l.service.mu.Unlock()
	close(l.done)
}
