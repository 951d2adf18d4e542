package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// While builds are written, listed and forgotten, a reader of each sees every
// frame once and in order, and a writer sees at once what it wrote.
func (s suite) readersAndWriters(t *testing.T) {
	store := s.fresh(t)
	const builds, readers, last = 6, 3, 120
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var group, others sync.WaitGroup
	for i := range builds {
		id := fmt.Sprintf("b%d", i)
		create(t, store, queued(id), nil)
		group.Go(func() { writeAll(ctx, t, store, id, last) })
		for range readers {
			group.Go(func() { follow(ctx, t, store, id, last) })
		}
	}
	done := make(chan struct{})
	others.Go(func() { turnOver(ctx, t, store, done) })
	group.Wait()
	close(done)
	others.Wait()
	for i := range builds {
		rec := get(t, store, fmt.Sprintf("b%d", i))
		if rec.State != build.Succeeded || rec.LastSeq != last {
			t.Errorf("%s is %s with %d frames", rec.ID, rec.State, rec.LastSeq)
		}
	}
}

// writeAll takes a build to its end, three frames at a time.
func writeAll(ctx context.Context, t *testing.T, store build.Store, id string, last uint64) {
	rec := queued(id)
	for n := uint64(1); n <= last; n += 3 {
		if n+2 == last {
			rec = ended(rec, build.Succeeded, start.AddDate(1, 0, 0))
		}
		if err := store.Commit(ctx, rec, frames(id, n, n+2)); err != nil {
			t.Errorf("%s: %v", id, err)
			return
		}
		got, err := store.Get(ctx, id)
		if err != nil || got.LastSeq != n+2 {
			t.Errorf("%s: %d frames after %d were committed, error %v", id, got.LastSeq, n+2, err)
			return
		}
	}
}

// follow reads a build to its end, as a watcher does.
func follow(ctx context.Context, t *testing.T, store build.Store, id string, last uint64) {
	for next := uint64(1); next <= last; {
		some, err := store.Frames(ctx, id, next, 100)
		if err != nil {
			t.Errorf("%s: %v", id, err)
			return
		}
		for _, f := range some {
			if want := frame(id, next); f.Sequence != next || string(f.Data) != string(want.Data) {
				t.Errorf("%s: frame %d is %d with %q", id, next, f.Sequence, f.Data)
				return
			}
			next++
		}
	}
}

// turnOver makes, ends, lists and forgets builds until it is told to stop.
func turnOver(ctx context.Context, t *testing.T, store build.Store, done <-chan struct{}) {
	for n := 0; ; n++ {
		select {
		case <-done:
			return
		default:
		}
		rec := queued(fmt.Sprintf("short%d", n))
		if _, _, err := store.Create(ctx, rec, []byte("short")); err != nil {
			t.Error(err)
			return
		}
		if err := store.Commit(ctx, ended(rec, build.Failed, start), frames(rec.ID, 1, 1)); err != nil {
			t.Error(err)
			return
		}
		if _, _, err := store.List(ctx, build.Query{}, 5, ""); err != nil {
			t.Error(err)
			return
		}
		gone, err := store.Forget(ctx, start.Add(1), noLimit, noLimit)
		if err != nil || len(gone) != 1 {
			t.Errorf("%v went, error %v", gone, err)
			return
		}
	}
}
