package build_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// chatty is a daemon that writes a number of lines as fast as it can.
func chatty(lines, size int) daemon {
	return func(_ context.Context, sink func(any)) build.Result {
		for range lines {
			sink(build.LogEvent{Data: bytes.Repeat([]byte("x"), size)})
		}
		return build.Result{}
	}
}

// Watchers that come at any time, at any number, and go and come back, each get
// every event once and in order; the frames in memory stay bounded, so that the
// ones that fall behind read from the store.
func TestWatchersMissNothing(t *testing.T) {
	const lines = 1500
	r := newRig(t, &pool{daemon: chatty(lines, 1000)}, newMemory(), 1)
	defer r.stop(t)
	rec, err := r.Start(t.Context(), web())
	if err != nil {
		t.Fatal(err)
	}
	errDrop := errors.New("the connection broke")
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			var events []seen
			take := into(t, &events)
			for {
				left := lines/10 + rand.IntN(lines)
				err := r.Watch(t.Context(), rec.ID, uint64(len(events)+1), func(f build.Frame) error { //nolint:gosec // small
					if left--; left < 0 {
						return errDrop
					}
					return take(f)
				})
				if err == nil {
					break
				}
				if !errors.Is(err, errDrop) {
					t.Error(err)
					return
				}
			}
			if len(events) != lines+2 || events[lines+1].Kind != "build.Outcome" {
				t.Errorf("%d events, want %d", len(events), lines+2)
			}
		})
	}
	group.Wait()
	if r.store.commits > lines/10 {
		t.Errorf("%d commits for %d events: they are not put together", r.store.commits, lines)
	}
}

func TestWatchBounds(t *testing.T) {
	r := newRig(t, &pool{daemon: daemon(succeeds)}, newMemory(), 1)
	defer r.stop(t)
	var events []seen
	if err := r.Build(t.Context(), web(), into(t, &events)); err != nil {
		t.Fatal(err)
	}
	for id := range r.store.records {
		if err := r.Watch(t.Context(), id, 5, nil); err != nil {
			t.Errorf("after the last event: %v", err)
		}
		if err := r.Watch(t.Context(), id, 6, nil); fault.KindOf(err) != fault.OutOfRange {
			t.Errorf("beyond: %v", err)
		}
	}
	if err := r.Watch(t.Context(), "nope", 0, nil); fault.KindOf(err) != fault.NotFound {
		t.Errorf("unknown: %v", err)
	}
}

// A reader that does not read holds neither the build nor the other readers.
func TestASlowReaderHoldsNobody(t *testing.T) {
	r := newRig(t, &pool{daemon: chatty(3000, 10)}, newMemory(), 1)
	defer r.stop(t)
	rec, err := r.Start(t.Context(), web())
	if err != nil {
		t.Fatal(err)
	}
	blocked, release := make(chan struct{}), make(chan struct{})
	slow := make(chan error, 1)
	go func() {
		var once sync.Once
		slow <- r.Watch(t.Context(), rec.ID, 0, func(build.Frame) error {
			once.Do(func() { close(blocked) })
			<-release
			return nil
		})
	}()
	<-blocked
	var events []seen
	if err := r.Watch(t.Context(), rec.ID, 0, into(t, &events)); err != nil || len(events) != 3002 {
		t.Errorf("%d events, %v", len(events), err)
	}
	r.final(t, rec.ID, build.Succeeded)
	close(release)
	if err := <-slow; err != nil {
		t.Error(err)
	}
}

// Nothing is shown before it is stored, and a store that is full for a while
// loses nothing.
func TestAFullDiskHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		r := newRig(t, &pool{daemon: chatty(100, 10)}, store, 1)
		defer r.stop(t)
		store.fail(errors.New("no space left on device"))
		rec, err := r.Start(t.Context(), web())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err = r.Watch(ctx, rec.ID, 0, func(build.Frame) error {
			t.Error("an event was shown that is not stored")
			return nil
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		store.fail(nil)
		var events []seen
		if err := r.Watch(t.Context(), rec.ID, 0, into(t, &events)); err != nil || len(events) != 102 {
			t.Errorf("%d events, %v", len(events), err)
		}
	})
}

// A build whose events cannot be stored does not grow without bound: it fails.
func TestABuildThatCannotBeStoredIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		r := newRig(t, &pool{daemon: daemon(func(ctx context.Context, sink func(any)) build.Result {
			for n := 0; ctx.Err() == nil && n < 200; n++ {
				sink(build.LogEvent{Data: make([]byte, 1<<20)})
			}
			return build.Result{Failure: &build.Failure{Message: "cancelled"}}
		})}, store, 1)
		defer r.stop(t)
		store.fail(errors.New("no space left on device"))
		rec, err := r.Start(t.Context(), web())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		store.fail(nil)
		time.Sleep(10 * time.Second)
		if rec = r.final(t, rec.ID, build.Failed); rec.Outcome.Failure.Reason != "DISK_FULL" {
			t.Errorf("failure %+v", rec.Outcome.Failure)
		}
	})
}

// A daemon that stops answering ends a build that it has not begun at once, and
// one that it is building a minute later.
func TestADaemonThatHangs(t *testing.T) {
	for name, begun := range map[string]bool{"not begun": false, "begun": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pool{daemon: daemon(func(ctx context.Context, sink func(any)) build.Result {
					if begun {
						sink(build.StepEvent{Name: "one"})
					}
					<-ctx.Done()
					return build.Result{Failure: &build.Failure{Message: "canceled"}}
				})}
				r := newRig(t, p, newMemory(), 1)
				defer r.stop(t)
				rec, err := r.Start(t.Context(), web())
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				p.fail(fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "gone", "look"))
				time.Sleep(30 * time.Second)
				if got, _ := r.Get(t.Context(), rec.ID); got.State.Final() == begun {
					t.Errorf("30 s after: %s", got.State)
				}
				time.Sleep(31 * time.Second)
				if rec = r.final(t, rec.ID, build.Failed); rec.Outcome.Failure.Class != build.Infrastructure {
					t.Errorf("failure %+v", rec.Outcome.Failure)
				}
			})
		})
	}
}

// A panic in the adapter fails that build alone.
func TestAPanicFailsOneBuild(t *testing.T) {
	r := newRig(t, &pool{daemon: daemon(func(context.Context, func(any)) build.Result { panic("oh") })}, newMemory(), 1)
	defer r.stop(t)
	if err := r.Build(t.Context(), web(), func(build.Frame) error { return nil }); err != nil {
		t.Error(err)
	}
	for id := range r.store.records {
		if rec := r.final(t, id, build.Failed); rec.Outcome.Failure.Reason != "INTERNAL" {
			t.Errorf("failure %+v", rec.Outcome.Failure)
		}
	}
}
