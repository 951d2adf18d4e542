package build_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

var errFull = errors.New("no space left on device")

// No record says that a build has ended before the store does: a kill -9 would
// take it back.
func TestAnEndIsToldWhenItIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		proceed := make(chan struct{})
		r := newRig(t, &pool{daemon: daemon(func(ctx context.Context, sink func(any)) build.Result {
			<-proceed
			return succeeds(ctx, sink)
		})}, store, 1)
		defer r.stop(t)
		rec, err := r.Start(t.Context(), web())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		store.fail(errFull)
		close(proceed)
		time.Sleep(10 * time.Second)
		if got, err := r.Get(t.Context(), rec.ID); err != nil || got.State != build.Running || got.LastSeq != 1 {
			t.Errorf("while the disk is full: %s with %d events, %v", got.State, got.LastSeq, err)
		}
		store.fail(nil)
		time.Sleep(10 * time.Second)
		r.final(t, rec.ID, build.Succeeded)
	})
}

// A builder whose disk is full comes up, so that there can be room again.
func TestRecoverOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		rec := build.Record{ID: "k", Project: "web", State: build.Running, Origin: build.OriginAPI, Attempt: 1, MaxAttempts: 1, Created: time.Now()}
		if _, _, err := store.Create(t.Context(), rec, nil); err != nil {
			t.Fatal(err)
		}
		store.fail(errFull)
		r := newRig(t, &pool{daemon: daemon(succeeds)}, store, 1)
		defer r.stop(t)
		start := time.Now()
		if err := r.Recover(t.Context()); err != nil || time.Since(start) > time.Second {
			t.Errorf("Recover took %s, %v", time.Since(start), err)
		}
		store.fail(nil)
		time.Sleep(5 * time.Second)
		r.final(t, "k", build.Interrupted)
		var events []seen
		if err := r.Watch(t.Context(), "k", 0, into(t, &events)); err != nil || events[0].Kind != "build.Started" {
			t.Errorf("%v, %v: a build that was killed before its first event has one all the same", events, err)
		}
	})
}

// A detached build that was joined is known as such once its caller has the answer.
func TestJoiningDetachesForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &pool{daemon: daemon(hangs)}, newMemory(), 1)
		defer r.stop(t)
		sub := web()
		sub.RequestID = "r1"
		ctx, cancel := context.WithCancel(t.Context())
		built := make(chan error, 1)
		go func() { built <- r.Build(ctx, sub, func(build.Frame) error { return nil }) }()
		time.Sleep(time.Second)
		joins := sub
		joins.Detached = true
		rec, err := r.Start(t.Context(), joins)
		if err != nil {
			t.Fatal(err)
		}
		if stored, err := r.store.Get(t.Context(), rec.ID); err != nil || !stored.Detached {
			t.Errorf("the store has detached %t, %v", stored.Detached, err)
		}
		cancel()
		if err := <-built; !errors.Is(err, context.Canceled) {
			t.Errorf("the call that was cancelled: %v", err)
		}
		time.Sleep(time.Minute)
		if rec, _ := r.Get(t.Context(), rec.ID); rec.State != build.Running {
			t.Errorf("a minute after its caller has gone the build is %s", rec.State)
		}
	})
}

// A build of the gateway ends once, and gives its slot back, however often its end
// is told.
func TestAnObservedBuildEndsOnce(t *testing.T) {
	store, slots := newMemory(), 1
	r := newRig(t, &pool{daemon: daemon(succeeds)}, store, slots)
	for _, id := range []string{"first", "second"} {
		ctx, observed, err := r.Observe(t.Context(), build.Observation{ID: id, Project: "web"})
		if err != nil {
			t.Fatal(err)
		}
		if err := observed.Wait(ctx, func(build.Waiting) { t.Errorf("%s waits for the one slot", id) }); err != nil {
			t.Fatal(err)
		}
		observed.Begin("d1")
		observed.End(ctx, nil, build.Result{})
		observed.End(ctx, &build.Failure{Message: "late", Class: build.Infrastructure}, build.Result{})
		r.final(t, id, build.Succeeded)
	}
	r.stop(t)
}

// What a build was accepted with is kept from there to its end, while it waits and
// through a restart.
func TestAccepted_IsHeldToTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := holds.Load()
		store := newMemory()
		r := newRig(t, &pool{daemon: daemon(hangs)}, store, 1)
		if _, err := r.Start(t.Context(), detached()); err != nil {
			t.Fatal(err)
		}
		waiting, err := r.Start(t.Context(), detached())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := holds.Load() - before; n != 2 {
			t.Errorf("%d are held while one builds and one waits", n)
		}
		r.stop(t)
		if n := holds.Load() - before; n != 0 {
			t.Errorf("%d are held by a service that has stopped", n)
		}
		again := newRig(t, &pool{daemon: daemon(succeeds)}, store, 0)
		if err := again.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := holds.Load() - before; n == 0 {
			t.Error("nothing is held of a build that waits again")
		}
		if _, err := again.Cancel(t.Context(), waiting.ID); err != nil {
			t.Fatal(err)
		}
		again.stop(t)
		if n := holds.Load() - before; n != 0 {
			t.Errorf("%d are held when all has ended", n)
		}
	})
}

func TestRefused_IsNotHeld(t *testing.T) {
	before := holds.Load()
	store := newMemory()
	r := newRig(t, &pool{daemon: daemon(succeeds)}, store, 1)
	sub := web()
	sub.RequestID = "one"
	for range 2 { // the second joins the first
		if err := r.Build(t.Context(), sub, func(build.Frame) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	r.stop(t)
	if n := holds.Load() - before; n != 0 {
		t.Errorf("%d are held", n)
	}
}

func detached() build.Submission {
	sub := web()
	sub.Detached, sub.Spec.MaxAttempts = true, 3
	return sub
}

type rightsKey struct{}

// A build that goes on after a restart has the rights that its caller has then, not
// those of the process that takes it up.
func TestRecover_BuildsOnBehalfOfTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		r := newRig(t, &pool{daemon: daemon(hangs)}, store, 1)
		sub := detached()
		sub.Caller.Identity = "ci"
		rec, err := r.Start(t.Context(), sub)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.stop(t)
		var rights any
		again := newRig(t, &pool{daemon: daemon(func(ctx context.Context, sink func(any)) build.Result {
			rights = ctx.Value(rightsKey{})
			return succeeds(ctx, sink)
		})}, store, 1)
		again.Behalf = func(ctx context.Context, rec build.Record) context.Context {
			return context.WithValue(ctx, rightsKey{}, "of "+rec.Caller)
		}
		if err := again.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer again.stop(t)
		if err := again.Watch(t.Context(), rec.ID, 1, func(build.Frame) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if rights != "of ci" {
			t.Errorf("it is built with the rights %v", rights)
		}
	})
}
