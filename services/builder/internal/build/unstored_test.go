package build_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

var errRefused = fmt.Errorf("%w: string or blob too big", build.ErrRefused)

// speaks is a daemon that writes lines until it is told to end, or has written "last".
func speaks(lines ...string) daemon {
	return func(ctx context.Context, sink func(any)) build.Result {
		for _, line := range lines {
			sink(build.LogEvent{Data: []byte(line)})
			time.Sleep(time.Second)
		}
		if lines[len(lines)-1] == "last" {
			return build.Result{}
		}
		<-ctx.Done()
		return build.Result{Failure: &build.Failure{Message: "canceled", Class: build.ByCancel}}
	}
}

// refusing lines are not stored, however often they are tried.
func refusesLine(line string) func(build.Record, []build.Frame) error {
	return func(_ build.Record, frames []build.Frame) error {
		for _, f := range frames {
			if strings.Contains(string(f.Data), line) {
				return errRefused
			}
		}
		return nil
	}
}

// A build whose events the store refuses for good fails for that reason, at once, and
// its end is stored: after the events that are, without a gap.
func TestUnstorable_EventsEndTheBuild(t *testing.T) {
	for name, solve := range map[string]daemon{
		"while it runs":    speaks("fine", "huge"),
		"as it ends":       speaks("fine", "huge", "last"),
		"with its outcome": func(context.Context, func(any)) build.Result { return build.Result{Outputs: []build.OutputResult{{}}} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemory()
				store.refuses = refusesLine("huge")
				if name == "with its outcome" {
					store.refuses = func(rec build.Record, _ []build.Frame) error {
						if rec.State == build.Succeeded {
							return errRefused
						}
						return nil
					}
				}
				r := newRig(t, &pool{daemon: solve}, store, 1)
				defer r.stop(t)
				var events []seen
				begun := time.Now()
				if err := r.Build(t.Context(), web(), into(t, &events)); err != nil || time.Since(begun) > 10*time.Second {
					t.Fatalf("%v after %s", err, time.Since(begun))
				}
				if last := events[len(events)-1]; last.Kind != "build.Outcome" {
					t.Errorf("the last event is %+v", last)
				}
				for id := range store.records {
					rec := r.final(t, id, build.Failed)
					if failure := rec.Outcome.Failure; failure.Reason != "STORAGE_FAILED" || failure.Class != build.Infrastructure ||
						rec.LastSeq != uint64(len(events)) {
						t.Errorf("%+v with %d events, want %d", failure, rec.LastSeq, len(events))
					}
				}
			})
		})
	}
}

// A build whose end the store refuses too has it in memory: those who watch are woken,
// and all that ask later are told, without asking the store again and again.
func TestUnstorable_EndIsKeptInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		r := newRig(t, &pool{daemon: speaks("a", "b", "last")}, store, 1)
		defer r.stop(t)
		rec, err := r.Start(t.Context(), web())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		store.fail(errRefused)
		var watchers sync.WaitGroup
		for range 20 {
			watchers.Go(func() {
				var events []seen
				if err := r.Watch(t.Context(), rec.ID, 1, into(t, &events)); err != nil || events[len(events)-1].Kind != "build.Outcome" {
					t.Errorf("%v after %v", err, events)
				}
			})
		}
		watchers.Wait()
		for range 3 {
			got, err := r.Get(t.Context(), rec.ID)
			if err != nil || got.State != build.Failed || got.Outcome.Failure.Reason != "STORAGE_FAILED" {
				t.Errorf("%+v, %v", got, err)
			}
			if got, err = r.Cancel(t.Context(), rec.ID); err != nil || got.State != build.Failed {
				t.Errorf("cancelled: %+v, %v", got, err)
			}
			var events []seen
			if err := r.Watch(t.Context(), rec.ID, 0, into(t, &events)); err != nil || events[len(events)-1].Kind != "build.Outcome" {
				t.Errorf("watched later: %v after %v", err, events)
			}
		}
		synctest.Wait()
		r.metrics.mu.Lock()
		defer r.metrics.mu.Unlock()
		if r.metrics.ended != 1 || store.reads > 50 {
			t.Errorf("%d ends, %d reads of the store", r.metrics.ended, store.reads)
		}
	})
}

// A store that fails for longer than one can wait ends builds as one that refuses does.
func TestUnstorable_WaitingHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		r := newRig(t, &pool{daemon: daemon(succeeds)}, store, 1)
		defer r.stop(t)
		store.fail(errors.New("input/output error"))
		begun := time.Now()
		if err := r.Build(t.Context(), web(), func(build.Frame) error { return nil }); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took < time.Minute || took > time.Hour {
			t.Errorf("it took %s", took)
		}
		for id := range store.records {
			if rec, err := r.Get(t.Context(), id); err != nil || rec.State != build.Failed {
				t.Errorf("%+v, %v", rec, err)
			}
		}
	})
}

// Who asks for a build that is being created waits for its life, and does not ask the
// store meanwhile.
func TestLookUp_WaitsForABuildThatIsCreated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		created, proceed := make(chan struct{}), make(chan struct{})
		store.creating = func() { close(created); <-proceed }
		r := newRig(t, &pool{daemon: daemon(succeeds)}, store, 1)
		defer r.stop(t)
		go func() {
			if _, err := r.Start(t.Context(), web()); err != nil {
				t.Error(err)
			}
		}()
		<-created
		var id string
		for id = range store.records {
		}
		watched := make(chan error, 1)
		go func() { watched <- r.Watch(t.Context(), id, 0, func(build.Frame) error { return nil }) }()
		time.Sleep(time.Minute)
		if store.reads > 3 {
			t.Errorf("%d reads of the store", store.reads)
		}
		close(proceed)
		if err := <-watched; err != nil {
			t.Error(err)
		}
	})
}

// A record without an end, of which no process knows the life, is an error at once.
func TestLookUp_OfARecordWithoutALife(t *testing.T) {
	store := newMemory()
	if _, _, err := store.Create(t.Context(), build.Record{ID: "orphan", Project: "web", State: build.Running}, nil); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, &pool{daemon: daemon(succeeds)}, store, 1)
	defer r.stop(t)
	begun := time.Now()
	if err := r.Watch(t.Context(), "orphan", 0, nil); fault.KindOf(err) != fault.Internal || time.Since(begun) > time.Second || store.reads > 3 {
		t.Errorf("%v after %s and %d reads", err, time.Since(begun), store.reads)
	}
}

// A panic, wherever it comes, ends its own build, as a failure of the infrastructure.
func TestPanic_EndsItsBuildAlone(t *testing.T) {
	for name, change := range map[string]func(*build.Options){
		"in the solve": func(o *build.Options) {
			o.Pool = &pool{daemon: daemon(func(context.Context, func(any)) build.Result { panic("solve") })}
		},
		"in the pool":        func(o *build.Options) { o.Pool = &panics{pool: pool{daemon: daemon(succeeds)}} },
		"in an event's form": func(o *build.Options) { o.Encode = encodePanics },
		"after the build": func(o *build.Options) {
			o.AfterBuild = func(build.Record, []build.StepEvent) { panic("after") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemory()
				r := newRig(t, &pool{daemon: daemon(succeeds)}, store, 1)
				change(&r.Options)
				defer r.stop(t)
				if err := r.Build(t.Context(), web(), func(build.Frame) error { return nil }); err != nil {
					t.Fatal(err)
				}
				want := build.Failed
				if name == "after the build" {
					want = build.Succeeded
				}
				for id := range store.records {
					rec := r.final(t, id, want)
					if want == build.Failed && rec.Outcome.Failure.Class != build.Infrastructure {
						t.Errorf("%+v", rec.Outcome.Failure)
					}
				}
			})
		})
	}
}

// panics is a pool that panics when a build that runs asks for a daemon.
type panics struct {
	pool
	asked int
}

func (p *panics) Pick(ctx context.Context) (build.Daemon, error) {
	if p.asked++; p.asked > 1 {
		panic("pool")
	}
	return p.pool.Pick(ctx)
}

func encodePanics(e build.Event) ([]byte, error) {
	if _, ok := e.Kind.(build.LogEvent); ok {
		panic("encode")
	}
	return encode(e)
}

// A caller that is let go because it reads too slowly has not left its build.
func TestSlowReader_KeepsItsBuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		r := newRig(t, &pool{daemon: speaks("a", "b", "c", "last")}, store, 1)
		defer r.stop(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		slow := errors.New("the stream has ended")
		err := r.Build(ctx, web(), func(f build.Frame) error {
			if f.Sequence == 2 {
				cancel(build.ErrSlowReader)
				return slow
			}
			return nil
		})
		if !errors.Is(err, slow) {
			t.Errorf("%v", err)
		}
		var id string
		for id = range store.records {
		}
		var rest []seen
		if err := r.Watch(t.Context(), id, 2, into(t, &rest)); err != nil || len(rest) != 5 {
			t.Errorf("%v, %d events", err, len(rest))
		}
		r.final(t, id, build.Succeeded)
	})
}
