package enforce

import (
	"context"
	"sync"

	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// Active is a run under way, which any number of callers may follow.
type Active struct {
	cancel context.CancelCauseFunc
	done   chan struct{}

	mu     sync.Mutex
	run    run.Run
	events []Event
	more   chan struct{} // closed when there are more
}

func newActive(r run.Run, cancel context.CancelCauseFunc) *Active {
	return &Active{cancel: cancel, done: make(chan struct{}), run: r, more: make(chan struct{})}
}

// Run is the run as it stands.
func (a *Active) Run() run.Run {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.run
}

// set notes how the run stands.
func (a *Active) set(r run.Run) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.run = r
}

func (a *Active) emit(e Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, e)
	close(a.more)
	a.more = make(chan struct{})
}

func (a *Active) end() { close(a.done) }

// Next returns the events from a place on, and waits while there are none. It returns none
// once the run has ended and all were returned, or ctx has ended.
func (a *Active) Next(ctx context.Context, from int) []Event {
	for {
		a.mu.Lock()
		events, more := a.events[from:], a.more
		a.mu.Unlock()
		if len(events) > 0 {
			return events
		}
		select {
		case <-more:
		case <-a.done:
			a.mu.Lock()
			events := a.events[from:]
			a.mu.Unlock()
			return events
		case <-ctx.Done():
			return nil
		}
	}
}
