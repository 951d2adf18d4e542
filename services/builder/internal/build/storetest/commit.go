package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Each commit leaves the record as it was given, with the number of the last
// frame, and adds its frames; after opening again too.
func (s suite) commitMovesOn(t *testing.T) {
	dir := t.TempDir()
	store := s.open(t, dir)
	rec := full("b1")
	create(t, store, rec, nil)
	step := func(change func(), frames []build.Frame, last uint64) {
		t.Helper()
		change()
		commit(t, store, rec, frames)
		rec.LastSeq = last
		equal(t, "the record", get(t, store, "b1"), rec)
	}
	step(func() {}, frames("b1", 1, 1), 1)
	step(func() { rec.Daemon, rec.Waiting = "second", nil }, nil, 1)
	step(func() { rec.Tags = []string{"localhost:5000/web:2", "localhost:5000/web:latest"} }, frames("b1", 2, 40), 40)
	step(func() { rec.Tags, rec.State = rec.Tags[:1], build.Queued }, frames("b1", 41, 41), 41)
	step(func() { rec = ended(rec, build.Succeeded, start.Add(time.Minute)) }, frames("b1", 42, 45), 45)
	closeStore(t, store)

	store = s.reopen(t, dir)
	equal(t, "after opening again", get(t, store, "b1"), rec)
	sameFrames(t, "the frames", allFrames(t, store, "b1", 1, 100), frames("b1", 1, 45))
}

// Frames that do not follow the last stored one are refused, and with them the
// record.
func (s suite) commitWithGap(t *testing.T) {
	store := s.fresh(t)
	rec := queued("b1")
	create(t, store, rec, nil)
	refused := func(name string, frames []build.Frame) {
		t.Helper()
		before := get(t, store, "b1")
		changed := ended(rec, build.Failed, start)
		changed.Tags = []string{"localhost:5000/never"}
		if err := store.Commit(t.Context(), changed, frames); err == nil || errors.Is(err, build.ErrFinal) {
			t.Fatalf("%s: %v, want an error of its own", name, err)
		}
		equal(t, name+": the record", get(t, store, "b1"), before)
		sameFrames(t, name+": the frames", allFrames(t, store, "b1", 1, 1000), testFrames(before.LastSeq))
	}
	refused("begins with 0", frames("b1", 0, 1))
	refused("begins with 2", frames("b1", 2, 3))
	commit(t, store, rec, frames("b1", 1, 3))
	refused("a gap", frames("b1", 5, 6))
	refused("an overlap", frames("b1", 3, 4))
	refused("again", frames("b1", 1, 3))
	refused("a gap within", append(frames("b1", 4, 4), frame("b1", 6)))
	refused("twice within", append(frames("b1", 4, 5), frame("b1", 5)))
	commit(t, store, rec, frames("b1", 4, 4))
	sameFrames(t, "the frames", allFrames(t, store, "b1", 1, 1000), testFrames(4))
}

func testFrames(last uint64) []build.Frame { return frames("b1", 1, last) }

// After the end there is ErrFinal, whatever comes, and nothing is written.
func (s suite) commitAfterTheEnd(t *testing.T) {
	for state := build.Succeeded; state <= build.Interrupted; state++ {
		store := s.fresh(t)
		rec := queued("b1")
		create(t, store, rec, nil)
		last := ended(rec, state, start.Add(time.Second))
		commit(t, store, last, frames("b1", 1, 2))
		last.LastSeq = 2
		for name, late := range map[string]struct {
			rec    build.Record
			frames []build.Frame
		}{
			"the same":       {last, nil},
			"the same frame": {last, frames("b1", 2, 2)},
			"another end":    {ended(rec, build.Cancelled, start), frames("b1", 3, 3)},
			"back":           {rec, nil},
			"with a gap":     {last, frames("b1", 9, 9)},
		} {
			if err := store.Commit(t.Context(), late.rec, late.frames); !errors.Is(err, build.ErrFinal) {
				t.Errorf("%s, %s: %v, want ErrFinal", state, name, err)
			}
		}
		equal(t, "the record", get(t, store, "b1"), last)
		sameFrames(t, "the frames", allFrames(t, store, "b1", 1, 1000), testFrames(2))
	}
}

func (s suite) commitEndsAtOnce(t *testing.T) {
	store := s.fresh(t)
	rec := queued("b1")
	create(t, store, rec, nil)
	commit(t, store, rec, frames("b1", 1, 1))
	results := make([]error, 64)
	end := func(i int) build.Record {
		rec := ended(rec, build.Succeeded+build.State(i%5), start.Add(time.Duration(i)))
		rec.LastSeq = 2
		return rec
	}
	var group sync.WaitGroup
	for i := range results {
		group.Go(func() {
			results[i] = store.Commit(t.Context(), end(i), []build.Frame{frame(fmt.Sprint(i), 2)})
		})
	}
	group.Wait()
	winner := -1
	for i, err := range results {
		switch {
		case err == nil && winner >= 0:
			t.Fatalf("%d and %d won", winner, i)
		case err == nil:
			winner = i
		case !errors.Is(err, build.ErrFinal):
			t.Errorf("%d: %v, want ErrFinal", i, err)
		}
	}
	if winner < 0 {
		t.Fatal("nobody won")
	}
	equal(t, "the record", get(t, store, "b1"), end(winner))
	sameFrames(t, "the frames", allFrames(t, store, "b1", 2, 1000), []build.Frame{frame(fmt.Sprint(winner), 2)})
}

// Builds that commit at once do not touch one another, also when one of them is
// refused.
func (s suite) commitOfManyBuilds(t *testing.T) {
	store := s.fresh(t)
	const builds, commits = 32, 10
	done := queued("done")
	create(t, store, done, nil)
	commit(t, store, ended(done, build.Failed, start), frames("done", 1, 1))
	var group sync.WaitGroup
	for i := range builds {
		group.Go(func() {
			id := fmt.Sprintf("b%d", i)
			rec := queued(id)
			if _, _, err := store.Create(t.Context(), rec, nil); err != nil {
				t.Errorf("%s: %v", id, err)
			}
			for n := range uint64(commits) {
				if err := store.Commit(t.Context(), rec, frames(id, 3*n+1, 3*n+3)); err != nil {
					t.Errorf("%s: %v", id, err)
				}
				if err := store.Commit(t.Context(), done, frames("done", 2, 2)); !errors.Is(err, build.ErrFinal) {
					t.Errorf("%v, want ErrFinal", err)
				}
			}
		})
	}
	group.Wait()
	for i := range builds {
		id := fmt.Sprintf("b%d", i)
		sameFrames(t, id, allFrames(t, store, id, 1, 1000), frames(id, 1, 3*commits))
	}
}

// A call whose context has ended writes nothing and harms nobody else.
func (s suite) cancelledCaller(t *testing.T) {
	store := s.fresh(t)
	create(t, store, queued("b1"), nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // What it should not do, it might not do at once.
		if err := store.Commit(ctx, queued("b1"), frames("b1", 1, 1)); !errors.Is(err, context.Canceled) {
			t.Fatalf("Commit: %v, want that the context has ended", err)
		}
	}
	if _, _, err := store.Create(ctx, queued("b2"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Create: %v, want that the context has ended", err)
	}
	if _, err := store.Get(ctx, "b1"); !errors.Is(err, context.Canceled) {
		t.Errorf("Get: %v, want that the context has ended", err)
	}
	commit(t, store, queued("b1"), frames("b1", 1, 1))
	if _, err := store.Get(t.Context(), "b2"); !errors.Is(err, build.ErrUnknown) {
		t.Errorf("%v, want ErrUnknown", err)
	}
}
