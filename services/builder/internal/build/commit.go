package build

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// How long a commit that fails is tried again: giveUpAfter while it may go through, as
// when a disk is full; endWithin for the end of a build whose events are refused.
const (
	giveUpAfter = 15 * time.Minute
	endWithin   = 10 * time.Second
)

// store writes what is pushed until the outcome is written, or the build is left. When
// the store refuses what happens in the build for good, the build fails, and its end is
// all that is still written; if that is refused too, it is kept in memory. So a build
// has one end, whatever the store does, and its readers get it.
func (l *live) store() {
	defer l.bury()
	for {
		<-l.wake
		b := l.take()
		if len(b.events) == 0 && !b.last && b.version == b.settled {
			continue
		}
		err := l.commit(b)
		switch {
		case err == nil && b.last:
			l.end = l.goodbye()
			return
		case err == nil:
			select {
			case <-time.After(commitEvery):
			case <-l.hurry:
			}
		case l.service.open.Err() != nil || b.left || errors.Is(err, ErrFinal):
			l.end = storageFailed(err) // The store has its end, or the next start finds it not ended.
			l.cancel(l.end)
			return
		case b.unstored:
			l.keepEnd(b)
			return
		default:
			l.refuse(err)
		}
	}
}

func storageFailed(err error) *fault.Error {
	return fault.Wrap(err, fault.Internal, "STORAGE_FAILED", "the builder cannot store what happens in the build",
		"the builder's log says why; build again when its state_dir is in order, and look whether the image was pushed")
}

// refuse notes that the store refuses the events of the build, and ends it.
func (l *live) refuse(err error) {
	l.service.Log.ErrorContext(l.ctx, "the store refuses a build's events; the build fails", "build", l.record().ID, "error", err)
	lost := storageFailed(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unstored, l.pending, l.size = true, nil, 0
	l.refusal = failureOf(lost)
	if l.final { // It had ended already.
		l.endUnstored(*l.rec.Outcome)
	}
	l.cancel(lost)
}

// endUnstored makes the end of the build the one event that follows those that are
// stored. mu is held.
func (l *live) endUnstored(outcome Outcome) {
	outcome.State, outcome.Failure = Failed, l.refusal
	l.rec.State, l.rec.Outcome, l.rec.LastSeq = outcome.State, &outcome, l.stored+1
	l.pending = []Event{{Sequence: l.rec.LastSeq, Time: time.Now(), Kind: outcome}}
	l.version++
	l.final = true
	signal(l.wake)
	signal(l.hurry)
}

// keepEnd shows the end of a build that the store does not take, from memory.
func (l *live) keepEnd(b batch) {
	frames, err := l.encode(b.events)
	if err != nil {
		frames, l.end = nil, storageFailed(err)
	}
	l.service.keep(l)
	l.publish(frames, b.version)
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
	left, unstored   bool // see live
}

func (l *live) take() batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := batch{
		events: l.pending, rec: l.rec, version: l.version, settled: l.settled,
		last: l.final || l.left, left: l.left, unstored: l.unstored,
	}
	l.pending, l.size = nil, 0
	return b
}

// commit stores a batch, again and again while the disk has no room, and shows it to
// readers. Its error says that the store will not take the batch.
func (l *live) commit(b batch) error {
	frames, err := l.encode(b.events)
	if err != nil {
		return err
	}
	patience := giveUpAfter
	if b.unstored {
		patience = endWithin
	}
	for begun, told := time.Now(), false; ; told = true {
		err := l.write(b.rec, frames)
		if err == nil {
			l.publish(frames, b.version)
			return nil
		}
		if errors.Is(err, ErrFinal) || errors.Is(err, ErrUnknown) || errors.Is(err, ErrRefused) || time.Since(begun) > patience {
			return err
		}
		if !told {
			l.service.Log.ErrorContext(l.ctx, "a build's events cannot be stored; trying again", "build", b.rec.ID, "error", err)
		}
		select {
		case <-l.service.open.Done():
			return err
		case <-time.After(retryEvery):
		}
	}
}

func (l *live) write(rec Record, frames []Frame) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), storeTimeout)
	defer cancel()
	return lifecycle.Protect(ctx, func(ctx context.Context) error { return l.service.Store.Commit(ctx, rec, frames) })
}

// storeTimeout bounds one write to the store.
const storeTimeout = 30 * time.Second

func (l *live) encode(events []Event) ([]Frame, error) {
	frames := make([]Frame, len(events))
	return frames, lifecycle.Protect(l.ctx, func(context.Context) error {
		for i, event := range events {
			data, err := l.service.Encode(event)
			if err != nil {
				return fmt.Errorf("encoding event %d: %w", event.Sequence, err)
			}
			frames[i] = Frame{Sequence: event.Sequence, Data: data}
		}
		return nil
	})
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
