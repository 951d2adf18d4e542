package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// noLimit of bytes or builds.
const noLimit = 1 << 40

// history fills a store with ten builds e0 to e9 that ended a minute after one
// another, the first created last, each with that many bytes of events, and
// between them r0 and r1, which have not ended.
func history(t *testing.T, store build.Store, bytes int) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{})
	for i := 9; i >= 0; i-- {
		id := fmt.Sprintf("e%d", i)
		create(t, store, queued(id), []byte("of "+id))
		data := make([]byte, bytes)
		_, _ = random.Read(data) // Never fails.
		commit(t, store, ended(queued(id), build.Failed, minute(i)), []build.Frame{{Sequence: 1, Data: data}})
		if i%5 == 0 {
			create(t, store, queued(fmt.Sprintf("r%d", i/5)), nil)
		}
	}
}

func minute(n int) time.Time { return start.Add(time.Duration(n) * time.Minute) }

// forget checks which builds go. Those that stay are the others.
func forget(t *testing.T, store build.Store, before time.Time, builds int, bytes int64, want ...string) {
	t.Helper()
	there := ids(pages(t, store, build.Query{}, 1000))
	gone, err := store.Forget(t.Context(), before, builds, bytes)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "those that went", sorted(gone), sorted(want))
	equal(t, "those that are left", len(pages(t, store, build.Query{}, 1000)), len(there)-len(want))
	for _, id := range want {
		if _, err := store.Get(t.Context(), id); !errors.Is(err, build.ErrUnknown) {
			t.Errorf("%s: %v, want ErrUnknown", id, err)
		}
	}
}

func (s suite) forgetByAge(t *testing.T) {
	store := s.fresh(t)
	history(t, store, 10)
	forget(t, store, time.Time{}, noLimit, noLimit)
	forget(t, store, start, noLimit, noLimit)
	forget(t, store, minute(2), noLimit, noLimit, "e0", "e1")
	forget(t, store, minute(2), noLimit, noLimit)
	forget(t, store, minute(4).Add(1), noLimit, noLimit, "e2", "e3", "e4")
	forget(t, store, minute(1000), noLimit, noLimit, "e5", "e6", "e7", "e8", "e9")
}

// All count, and only those that have ended go, the first that ended first.
func (s suite) forgetByCount(t *testing.T) {
	store := s.fresh(t)
	history(t, store, 10)
	forget(t, store, time.Time{}, 12, noLimit)
	forget(t, store, time.Time{}, 9, noLimit, "e0", "e1", "e2")
	forget(t, store, minute(4), 7, noLimit, "e3", "e4")
	forget(t, store, time.Time{}, 1, noLimit, "e5", "e6", "e7", "e8", "e9")
	forget(t, store, time.Time{}, 0, 0)
	if left, err := store.Unended(t.Context()); err != nil || len(left) != 2 {
		t.Errorf("%v are left, error %v; want r0 and r1", ids(left), err)
	}
}

func (s suite) forgetByBytes(t *testing.T) {
	store := s.fresh(t)
	history(t, store, 100_000)
	forget(t, store, time.Time{}, noLimit, 1_200_000)
	forget(t, store, time.Time{}, noLimit, 550_000, "e0", "e1", "e2", "e3", "e4")
	forget(t, store, minute(6), 6, 350_000, "e5", "e6")

	// A running build counts, and stays.
	commit(t, store, queued("r0"), []build.Frame{{Sequence: 1, Data: make([]byte, 300_000)}})
	forget(t, store, time.Time{}, noLimit, 450_000, "e7", "e8")
	forget(t, store, time.Time{}, noLimit, 0, "e9")
}

// With a build go its request, its events and its request id.
func (s suite) forgetsAll(t *testing.T) {
	dir := t.TempDir()
	store := s.open(t, dir)
	rec := queued("b1")
	rec.RequestID, rec.Tags = "r1", []string{"localhost:5000/web"}
	create(t, store, rec, []byte("old"))
	commit(t, store, ended(rec, build.Succeeded, start), frames("b1", 1, 3))
	forget(t, store, minute(1), noLimit, noLimit, "b1")
	gone := func() {
		t.Helper()
		if _, err := store.Request(t.Context(), "b1"); !errors.Is(err, build.ErrUnknown) {
			t.Errorf("its request: %v, want ErrUnknown", err)
		}
		if _, err := store.Frames(t.Context(), "b1", 1, 100); !errors.Is(err, build.ErrUnknown) {
			t.Errorf("its events: %v, want ErrUnknown", err)
		}
		if err := store.Commit(t.Context(), rec, frames("b1", 4, 4)); !errors.Is(err, build.ErrUnknown) {
			t.Errorf("a commit: %v, want ErrUnknown", err)
		}
	}
	gone()
	closeStore(t, store)
	store = s.reopen(t, dir)
	gone()
	create(t, store, rec, []byte("new"))
	if request, err := store.Request(t.Context(), "b1"); err != nil || string(request) != "new" {
		t.Errorf("the request is %q, error %v", request, err)
	}
	sameFrames(t, "the frames", allFrames(t, store, "b1", 1, 100), nil)
	commit(t, store, rec, frames("b1", 1, 2))
	sameFrames(t, "the frames", allFrames(t, store, "b1", 1, 100), frames("b1", 1, 2))
}
