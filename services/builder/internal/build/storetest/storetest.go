// Package storetest is what every implementation of build.Store must pass: each
// sentence of the interface's comments is a test here.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Run tests the store that open opens in a directory: an empty one, or one that
// a store was closed in, or one whose process was killed. The test that calls it
// does nothing else, for Run starts it again in a process of its own.
func Run(t *testing.T, open func(t *testing.T, dir string) build.Store) {
	if isVictim() {
		writeUntilKilled(t, open)
		return
	}
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	s := suite{open: open}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"CreateKeepsAll", s.createKeepsAll},
		{"CreateOfKnownID", s.createOfKnownID},
		{"CreateWithRequestID", s.createWithRequestID},
		{"CreateAtOnce", s.createAtOnce},
		{"Requests", s.requests},
		{"Unknown", s.unknown},
		{"CommitMovesOn", s.commitMovesOn},
		{"CommitWithGap", s.commitWithGap},
		{"CommitAfterTheEnd", s.commitAfterTheEnd},
		{"CommitEndsAtOnce", s.commitEndsAtOnce},
		{"CommitOfManyBuilds", s.commitOfManyBuilds},
		{"CancelledCaller", s.cancelledCaller},
		{"FramesFromAnywhere", s.framesFromAnywhere},
		{"FramesOfAnySize", s.framesOfAnySize},
		{"ListFitsTheQuery", s.listFitsTheQuery},
		{"ListOfLargeFilters", s.listOfLargeFilters},
		{"ListWhileBuildsCome", s.listWhileBuildsCome},
		{"PageTokens", s.pageTokens},
		{"BadQueries", s.badQueries},
		{"Unended", s.unended},
		{"ForgetByAge", s.forgetByAge},
		{"ForgetByCount", s.forgetByCount},
		{"ForgetByBytes", s.forgetByBytes},
		{"ForgetsAll", s.forgetsAll},
		{"ReadersAndWriters", s.readersAndWriters},
		{"Killed", s.killed},
	} {
		t.Run(test.name, test.run)
	}
}

type suite struct {
	open func(t *testing.T, dir string) build.Store
}

// fresh opens an empty store, which is closed after the test.
func (s suite) fresh(t *testing.T) build.Store {
	t.Helper()
	return s.reopen(t, t.TempDir())
}

// reopen opens the store of a directory, which is closed after the test.
func (s suite) reopen(t *testing.T, dir string) build.Store {
	t.Helper()
	store := s.open(t, dir)
	t.Cleanup(func() { closeStore(t, store) })
	return store
}

func closeStore(t *testing.T, store build.Store) {
	t.Helper()
	if err := store.Close(); err != nil {
		t.Errorf("closing the store: %v", err)
	}
}

// tester is a test, or one try of a property.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
	Context() context.Context
}

// start is when the first of the builds here was created.
var start = time.Date(2026, 11, 25, 12, 0, 0, 123456789, time.UTC)

// queued is the record of a build that waits.
func queued(id string) build.Record {
	return build.Record{ID: id, Project: "web", State: build.Queued, Origin: build.OriginAPI, Created: start, Attempt: 1}
}

// ended is rec as it is when the build has ended.
func ended(rec build.Record, state build.State, at time.Time) build.Record {
	rec.State, rec.Ended = state, at
	rec.Outcome = &build.Outcome{State: state}
	return rec
}

// create adds a build that is not there.
func create(t tester, store build.Store, rec build.Record, request []byte) {
	t.Helper()
	_, created, err := store.Create(t.Context(), rec, request)
	if err != nil || !created {
		t.Fatalf("creating %s: created %t, error %v", rec.ID, created, err)
	}
}

// commit writes a record and frames.
func commit(t tester, store build.Store, rec build.Record, frames []build.Frame) {
	t.Helper()
	if err := store.Commit(t.Context(), rec, frames); err != nil {
		t.Fatalf("committing %d frames of %s: %v", len(frames), rec.ID, err)
	}
}

// get returns a record that is there.
func get(t tester, store build.Store, id string) build.Record {
	t.Helper()
	rec, err := store.Get(t.Context(), id)
	if err != nil {
		t.Fatalf("getting %s: %v", id, err)
	}
	return rec
}

// frame is the frame that the build has with that number: readers can tell.
func frame(id string, sequence uint64) build.Frame {
	return build.Frame{Sequence: sequence, Data: fmt.Appendf(nil, "%s/%d", id, sequence)}
}

// frames are those from first to last.
func frames(id string, first, last uint64) []build.Frame {
	var all []build.Frame
	for n := first; n <= last; n++ {
		all = append(all, frame(id, n))
	}
	return all
}

// allFrames reads the frames of a build to the end, in portions of that size.
func allFrames(t tester, store build.Store, id string, from uint64, portion int) []build.Frame {
	t.Helper()
	var all []build.Frame
	for {
		some, err := store.Frames(t.Context(), id, from, portion)
		if err != nil {
			t.Fatalf("frames of %s from %d: %v", id, from, err)
		}
		if len(some) == 0 {
			return all
		}
		all = append(all, some...)
		from = some[len(some)-1].Sequence + 1
	}
}

// equal fails the test when got is not want, but for what is not exported.
func equal[T any](t tester, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(build.Record{}), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// sameFrames fails the test when got are not the frames of want.
func sameFrames(t tester, what string, got, want []build.Frame) {
	t.Helper()
	same := func(a, b build.Frame) bool { return a.Sequence == b.Sequence && bytes.Equal(a.Data, b.Data) }
	if slices.EqualFunc(got, want, same) {
		return
	}
	for i := range min(len(got), len(want)) {
		if !same(got[i], want[i]) {
			t.Fatalf("%s: frame %d is %d with %.100q, want %d with %.100q", what, i, got[i].Sequence, got[i].Data, want[i].Sequence, want[i].Data)
		}
	}
	t.Fatalf("%s: %d frames, want %d", what, len(got), len(want))
}

// isFault fails the test when err is not a fault of that kind.
func isFault(t tester, what string, err error, kind fault.Kind) {
	t.Helper()
	if _, ok := errors.AsType[*fault.Error](err); !ok || fault.KindOf(err) != kind {
		t.Fatalf("%s: %v, want a fault of kind %s", what, err, kind)
	}
}

func ids(records []build.Record) []string {
	var all []string
	for _, rec := range records {
		all = append(all, rec.ID)
	}
	return all
}

// sorted is a sorted copy.
func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }
