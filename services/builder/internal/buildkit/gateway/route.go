package gateway

import (
	"context"
	"sync"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
)

// phase is how far a build has come. It only grows.
type phase int

const (
	expected phase = iota // a call named the build; its Solve has not come
	waiting               // its Solve has come and is checked, or waits for a slot
	placed                // it has a daemon, and its Solve is on the way there
	running               // the daemon has answered a call of the build
	ended                 // its Solve has ended
)

// route is one build as its calls see it. A client makes the calls of a build
// (Solve, Status, those of its frontend) at the same time, and they arrive in any
// order; what they share is BuildKit's ref.
type route struct {
	ref   string
	calls int // that name it; guarded by routes.mu

	// life ends with a cause when the build is ended before its time: cancelled,
	// refused, or because its client left. It goes on after a regular end.
	life context.Context //nolint:containedctx // calls of the build end with it
	cut  context.CancelCauseFunc

	mu      sync.Mutex
	changed chan struct{} // closed when anything below changes, and then made anew
	phase   phase
	owner   owner
	project string
	place   build.Waiting // in the queue; zero before it has one
	daemon  *upstream     // from placed on; nil when the build never had one
	slot    *slot         // from placed on; nil for a probe
	view    *mask.View    // of its steps; nil for a probe and before a daemon is about to get it
	probe   bool
	had     bool // the daemon has told that it has the build
	err     error
}

func newRoute(ref string) *route {
	r := &route{ref: ref, changed: make(chan struct{})}
	r.life, r.cut = context.WithCancelCause(context.Background())
	return r
}

// state is a route at one moment.
type state struct {
	phase  phase
	owner  owner
	place  build.Waiting
	daemon *upstream
	slot   *slot
	probe  bool
	lost   bool // it ended with an error, and no daemon ever had it
}

// queued reports whether the build waits for a slot.
func (s state) queued() bool { return s.phase == waiting && s.place.Position > 0 }

// now returns the state of the route, and a channel that is closed when it changes.
func (r *route) now() (state, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return state{
		phase: r.phase, owner: r.owner, place: r.place, daemon: r.daemon, slot: r.slot, probe: r.probe,
		lost: r.phase == ended && r.err != nil && !r.had,
	}, r.changed
}

// await waits until the build has come as far as a phase, or until ctx ends, and
// returns the state at that moment.
func (r *route) await(ctx context.Context, at phase) (state, error) {
	return r.until(ctx, func(s state) bool { return s.phase >= at })
}

// until is await for any condition.
func (r *route) until(ctx context.Context, is func(state) bool) (state, error) {
	for {
		s, changed := r.now()
		if is(s) {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s, context.Cause(ctx)
		}
	}
}

// change changes the route and wakes all that wait for that.
func (r *route) change(to func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	to()
	close(r.changed)
	r.changed = make(chan struct{})
}

// arrive notes that the Solve has come. It returns false when another came before.
func (r *route) arrive(of owner, project string) (first bool) {
	r.change(func() {
		if first = r.phase == expected; first {
			r.phase, r.owner, r.project = waiting, of, project
		}
	})
	return first
}

// stand notes the place of the build in the queue.
func (r *route) stand(w build.Waiting) { r.change(func() { r.place = w }) }

// send notes that the Solve goes to a daemon. slot is nil for a probe.
func (r *route) send(to *upstream, s *slot) {
	r.change(func() { r.phase, r.daemon, r.slot, r.probe = placed, to, s, s == nil })
}

// watch notes who sees the steps of the build.
func (r *route) watch(view *mask.View) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.view = view
}

// seen returns what watch noted.
func (r *route) seen() *mask.View {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.view
}

// has reports whether a daemon has, or had, the build.
func (r *route) has() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.had
}

// answered notes that the daemon has the build.
func (r *route) answered() {
	if !r.has() {
		r.change(func() { r.had, r.phase = true, max(r.phase, running) })
	}
}

// end notes that the Solve has ended. A build that no daemon had, or that its daemon
// refused, ends its other calls with the same error: a daemon looks for seconds for a
// build that it does not have.
func (r *route) end(err error) {
	if s, _ := r.now(); s.daemon == nil || err != nil && !r.has() {
		r.cut(err)
	}
	r.change(func() { r.phase, r.err = ended, err })
}
