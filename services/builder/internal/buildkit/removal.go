package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Removals remembers, beyond the end of the process, which records daemons must still
// drop.
type Removals interface {
	// AddRemoval remembers a record, by the ref of its solve.
	AddRemoval(ctx context.Context, daemon, ref string) error
	// DropRemoval forgets a record that the daemon has dropped.
	DropRemoval(ctx context.Context, daemon, ref string) error
	// Removals returns the refs that are left for a daemon.
	Removals(ctx context.Context, daemon string) ([]string, error)
	// MoveRemovals gives a daemon the refs of all that are not configured, and returns how
	// many these were.
	MoveRemovals(ctx context.Context, configured []string, to string) (map[string]int, error)
}

// AdoptRemovals has the daemon drop the records, too, that daemons have to drop which are
// no longer configured: it may be one of them under a new name. A ref that it does not know
// is forgotten.
func (d *Daemon) AdoptRemovals(ctx context.Context, configured []string) error {
	moved, err := d.opts.Removals.MoveRemovals(ctx, configured, d.name)
	for gone, n := range moved {
		d.log.WarnContext(ctx, "a daemon is no longer configured that has records of builds with secrets; they are looked for at another, "+
			"and then forgotten", "daemon", gone, "records", n, "at", d.name,
			"remedy", "if it still runs elsewhere, drop its history: buildctl --addr ADDRESS prune-histories")
	}
	return err
}

// remover has a daemon drop its own records of solves with secrets: the daemon keeps
// what steps wrote as it was, and a step may have written a secret out. The builder's
// record has it masked. What must be dropped is stored before the solve begins, so that a
// kill of the builder or of the daemon leaves no record for good.
type remover struct {
	daemon  string
	control controlapi.ControlClient
	store   Removals
	log     *slog.Logger
	began   time.Time

	mu    sync.Mutex
	live  map[string]bool      // solves under way
	ended map[string]time.Time // when those of this process ended
	wake  chan struct{}
}

func newRemover(daemon string, control controlapi.ControlClient, store Removals, log *slog.Logger) *remover {
	return &remover{
		daemon: daemon, control: control, store: store, log: log, began: time.Now(),
		live: make(map[string]bool), ended: make(map[string]time.Time), wake: make(chan struct{}, 1),
	}
}

// toForget remembers that the daemon must drop its record of a solve if the build has
// secrets. ended must be called with the error of the solve.
func (d *Daemon) toForget(ctx context.Context, ref string, spec build.Spec) (ended func(error), err error) {
	if !spec.HasSecrets() {
		return func(error) {}, nil
	}
	return func(err error) {
		answered := err == nil || ctx.Err() == nil && grpcerrors.Code(err) != codes.Unavailable
		d.remover.end(ctx, ref, answered)
	}, d.remover.begin(ctx, ref)
}

const (
	// removeWithin bounds one attempt to have a record dropped.
	removeWithin = 5 * time.Second
	// removeGrace is how long after a solve was cut off its record may still come: the
	// daemon learns of the end of a killed builder late.
	removeGrace = 10 * time.Second
	// A failed round of removals is repeated after removeFirst, and then ever later.
	removeFirst, removeLast = time.Second, time.Minute
)

// begin remembers that the record of a solve must be dropped, before the solve begins.
func (r *remover) begin(ctx context.Context, ref string) error {
	r.mu.Lock()
	r.live[ref] = true
	r.mu.Unlock()
	err := r.store.AddRemoval(ctx, r.daemon, ref)
	if err != nil {
		r.mu.Lock()
		delete(r.live, ref)
		r.mu.Unlock()
	}
	return err
}

// end has the record of a solve dropped that has ended. Its record is complete when the
// daemon itself has ended the solve; else it is dropped later, as when this fails.
func (r *remover) end(ctx context.Context, ref string, complete bool) {
	ctx = context.WithoutCancel(ctx)
	r.mu.Lock()
	delete(r.live, ref)
	r.ended[ref] = time.Now()
	r.mu.Unlock()
	if complete {
		err := r.remove(ctx, ref, true)
		if err == nil {
			return
		}
		r.log.WarnContext(ctx, "the daemon's own record of a build with secrets is not dropped yet; trying again", "ref", ref, "error", err)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run has the records dropped that are left, until ctx ends.
func (r *remover) run(ctx context.Context) error {
	wait := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
			wait = removeFirst
		case <-time.After(wait):
		}
		left, err := 0, error(nil)
		_ = lifecycle.Protect(ctx, func(ctx context.Context) error { // a panic is reported
			left, err = r.round(ctx)
			return nil
		})
		switch {
		case err != nil:
			r.log.WarnContext(ctx, "records of builds with secrets cannot be dropped", "error", err)
			fallthrough
		case left > 0:
			wait = min(max(removeFirst, 2*wait), removeLast)
		default:
			wait = time.Hour // unless a solve leaves a record
		}
	}
}

// round tries each record once, and returns how many are left.
func (r *remover) round(ctx context.Context) (left int, _ error) {
	refs, err := r.store.Removals(ctx, r.daemon)
	if err != nil {
		return 0, err
	}
	for _, ref := range refs {
		since, live := r.since(ref)
		if live {
			continue // its end wakes this again
		}
		if err := r.remove(ctx, ref, time.Since(since) > removeGrace); err != nil {
			r.log.DebugContext(ctx, "a record of a build with secrets is left", "ref", ref, "error", err)
			left++
		}
	}
	return left, nil
}

// since returns when a solve ended, or that it is under way. Those of an earlier process
// ended before this one began.
func (r *remover) since(ref string) (_ time.Time, live bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, ok := r.ended[ref]; ok {
		return at, false
	}
	return r.began, r.live[ref]
}

var errUnderWay = errors.New("the daemon may still be working on the build")

// remove has the daemon drop a record, and looks whether it is gone. Unless no record can
// come any more, the record is kept in mind.
func (r *remover) remove(ctx context.Context, ref string, complete bool) error {
	ctx, cancel := context.WithTimeout(ctx, removeWithin)
	defer cancel()
	if _, err := r.control.UpdateBuildHistory(ctx, &controlapi.UpdateBuildHistoryRequest{Ref: ref, Delete: true}); err != nil && grpcerrors.Code(err) != codes.NotFound {
		return fmt.Errorf("dropping the record: %w", err)
	}
	history, err := r.control.ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true})
	if err == nil {
		_, err = history.Recv()
	}
	switch {
	case err == nil || !complete:
		return errUnderWay
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("looking for the record: %w", err)
	}
	if err := r.store.DropRemoval(ctx, r.daemon, ref); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.ended, ref)
	r.mu.Unlock()
	return nil
}
