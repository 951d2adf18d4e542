package storetest

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Whatever commits there were, frames come from any number on, in order, without
// gaps, at least one when there is one, and by little more than maxBytes.
func (s suite) framesFromAnywhere(t *testing.T) {
	store := s.fresh(t)
	builds := 0
	rapid.Check(t, func(r *rapid.T) {
		builds++
		id := fmt.Sprintf("b%d", builds)
		create(r, store, queued(id), nil)
		var all []build.Frame
		for range rapid.IntRange(0, 5).Draw(r, "commits") {
			var some []build.Frame
			for range rapid.IntRange(0, 5).Draw(r, "frames") {
				size := rapid.SampledFrom([]int{0, 1, 10, 200, 70_000}).Draw(r, "size")
				next := uint64(len(all)+len(some)) + 1
				some = append(some, build.Frame{Sequence: next, Data: bytes.Repeat([]byte{byte(next)}, size)})
			}
			commit(r, store, queued(id), some)
			all = append(all, some...)
		}
		for range 4 {
			from := rapid.Uint64Range(0, uint64(len(all))+2).Draw(r, "from")
			maxBytes := rapid.SampledFrom([]int{0, 1, 50, 1000, 100_000, 1 << 30}).Draw(r, "maxBytes")
			got, err := store.Frames(r.Context(), id, from, maxBytes)
			if err != nil {
				r.Fatal(err)
			}
			rest := all[min(max(from, 1)-1, uint64(len(all))):]
			if len(got) == 0 && len(rest) > 0 || len(got) > len(rest) {
				r.Fatalf("%d frames from %d on, of %d", len(got), from, len(rest))
			}
			sameFrames(r, "the frames", got, rest[:len(got)])
			if before := size(got) - size(got[max(0, len(got)-1):]); before > maxBytes {
				r.Fatalf("%d bytes before the last frame, want at most %d", before, maxBytes)
			}
		}
		sameFrames(r, "all frames", allFrames(r, store, id, 1, 300), all)
	})
}

func size(frames []build.Frame) int {
	n := 0
	for _, f := range frames {
		n += len(f.Data)
	}
	return n
}

// A frame of several megabytes is kept, and what was returned stays as it is
// while others are read and written.
func (s suite) framesOfAnySize(t *testing.T) {
	store := s.fresh(t)
	create(t, store, queued("b1"), nil)
	large := make([]byte, 4<<20)
	for i := range large {
		large[i] = byte(i * 7 / 3)
	}
	want := []build.Frame{{Sequence: 1, Data: large}, frame("b1", 2), {Sequence: 3, Data: large[1:]}}
	commit(t, store, queued("b1"), want)
	got, err := store.Frames(t.Context(), "b1", 1, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, store, queued("b1"), frames("b1", 4, 1000))
	sameFrames(t, "the later frames", allFrames(t, store, "b1", 4, 500), frames("b1", 4, 1000))
	sameFrames(t, "the frames", got, want[:len(got)])
	sameFrames(t, "all of them", allFrames(t, store, "b1", 1, 1)[:3], want)
}
