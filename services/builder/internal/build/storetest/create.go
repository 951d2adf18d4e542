package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// All fields of a record and its request are there, after the store was closed
// and opened again too.
func (s suite) createKeepsAll(t *testing.T) {
	dir := t.TempDir()
	store := s.open(t, dir)
	want := full("b1")
	got, created, err := store.Create(t.Context(), want, []byte("the request"))
	if err != nil || !created {
		t.Fatalf("created %t, error %v", created, err)
	}
	equal(t, "what Create returned", got, want)
	equal(t, "what Get returned", get(t, store, "b1"), want)
	closeStore(t, store)

	store = s.reopen(t, dir)
	equal(t, "after opening again", get(t, store, "b1"), want)
	request, err := store.Request(t.Context(), "b1")
	if err != nil || string(request) != "the request" {
		t.Fatalf("the request is %q, error %v", request, err)
	}
}

func (s suite) createOfKnownID(t *testing.T) {
	store := s.fresh(t)
	create(t, store, queued("b1"), []byte("first"))
	other := queued("b1")
	other.Project = "other"
	_, created, err := store.Create(t.Context(), other, []byte("second"))
	isFault(t, "creating a known id", err, fault.AlreadyExists)
	if created {
		t.Error("it says that it was created")
	}
	equal(t, "the first", get(t, store, "b1"), queued("b1"))
	if request, err := store.Request(t.Context(), "b1"); err != nil || string(request) != "first" {
		t.Errorf("the request is %q, error %v", request, err)
	}
}

// A request id is that of one build of its project, for as long as the record
// lives: when it has ended, and after the store was opened again.
func (s suite) createWithRequestID(t *testing.T) {
	dir := t.TempDir()
	store := s.open(t, dir)
	withID := func(id, project, requestID string) build.Record {
		rec := queued(id)
		rec.Project, rec.RequestID, rec.Fingerprint = project, requestID, "of "+id
		return rec
	}
	first := withID("b1", "web", "r1")
	create(t, store, first, []byte("first"))
	again := func(want build.Record) {
		t.Helper()
		got, created, err := store.Create(t.Context(), withID("b2", "web", "r1"), []byte("second"))
		if err != nil || created {
			t.Fatalf("created %t, error %v", created, err)
		}
		equal(t, "the build of the request id", got, want)
		found, err := store.Find(t.Context(), "web", "r1")
		if err != nil {
			t.Fatalf("finding the request id: %v", err)
		}
		equal(t, "the build that Find returned", found, want)
		if _, err := store.Get(t.Context(), "b2"); !errors.Is(err, build.ErrUnknown) {
			t.Fatalf("the second build: %v, want ErrUnknown", err)
		}
		if request, err := store.Request(t.Context(), "b1"); err != nil || string(request) != "first" {
			t.Fatalf("the request is %q, error %v", request, err)
		}
	}
	again(first)
	create(t, store, withID("b3", "other", "r1"), nil)
	create(t, store, withID("b4", "web", "r2"), nil)
	create(t, store, withID("b5", "web", ""), nil)
	create(t, store, withID("b6", "web", ""), nil)

	first = ended(first, build.Failed, start)
	commit(t, store, first, frames("b1", 1, 2))
	first.LastSeq = 2
	again(first)
	closeStore(t, store)
	store = s.reopen(t, dir)
	again(first)

	if _, err := store.Forget(t.Context(), start.AddDate(1, 0, 0), 100, 1<<40); err != nil {
		t.Fatal(err)
	}
	create(t, store, withID("b2", "web", "r1"), nil)
}

func (s suite) createAtOnce(t *testing.T) {
	store := s.fresh(t)
	var created atomic.Int32
	var group sync.WaitGroup
	got := make([]string, 32)
	for i := range got {
		group.Go(func() {
			rec := queued(fmt.Sprintf("b%d", i))
			rec.RequestID = "r1"
			rec, isNew, err := store.Create(t.Context(), rec, []byte(rec.ID))
			if err != nil {
				t.Errorf("caller %d: %v", i, err)
			}
			if isNew {
				created.Add(1)
			}
			got[i] = rec.ID
		})
	}
	group.Wait()
	if created.Load() != 1 {
		t.Errorf("%d builds were created, want 1", created.Load())
	}
	for i, id := range got {
		if id != got[0] {
			t.Errorf("caller %d got %s, another %s", i, id, got[0])
		}
	}
	if all, err := store.Unended(t.Context()); err != nil || len(all) != 1 || all[0].ID != got[0] {
		t.Errorf("there are %v, error %v; want %s", ids(all), err, got[0])
	}
}

func (s suite) requests(t *testing.T) {
	store := s.fresh(t)
	noise := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(noise) // Never fails.
	for id, want := range map[string][]byte{
		"empty": {}, "small": []byte("a"), "noise": noise, "zeros": make([]byte, 1<<20),
		"text": bytes.Repeat([]byte("FROM scratch\n"), 4000),
	} {
		create(t, store, queued(id), want)
		got, err := store.Request(t.Context(), id)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d; error %v", id, len(got), len(want), err)
		}
	}
}

func (s suite) unknown(t *testing.T) {
	store := s.fresh(t)
	create(t, store, queued("b1"), nil)
	for name, call := range map[string]func(ctx context.Context) error{
		"Get":                func(ctx context.Context) error { _, err := store.Get(ctx, "b2"); return err },
		"Find":               func(ctx context.Context) error { _, err := store.Find(ctx, "web", "no"); return err },
		"Find without an id": func(ctx context.Context) error { _, err := store.Find(ctx, queued("b1").Project, ""); return err },
		"Request":            func(ctx context.Context) error { _, err := store.Request(ctx, "b2"); return err },
		"Frames":             func(ctx context.Context) error { _, err := store.Frames(ctx, "b2", 1, 1000); return err },
		"Commit":             func(ctx context.Context) error { return store.Commit(ctx, queued("b2"), frames("b2", 1, 1)) },
	} {
		if err := call(t.Context()); !errors.Is(err, build.ErrUnknown) {
			t.Errorf("%s: %v, want ErrUnknown", name, err)
		}
	}
	if all, err := store.Unended(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("there are %v, error %v; want b1 alone", ids(all), err)
	}
}
