package build

import (
	"context"
	"errors"
	"time"
)

// ErrSlowReader is the cause of the end of a call whose caller left a message unread.
// It did not leave its build: that goes on, for the caller to come back to.
var ErrSlowReader = errors.New("the caller reads too slowly")

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

// leave takes back attach. The last call that goes ends the build, unless the caller
// was let go because it reads too slowly.
func (l *live) leave(ctx context.Context) {
	if errors.Is(context.Cause(ctx), ErrSlowReader) {
		l.detach()
	}
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
		// A caller that comes either finds the build cancelled, or keeps it: nothing
		// comes between looking and cancelling.
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.callers == 0 && !l.rec.Detached {
			l.cancel(cause)
		}
	})
}
