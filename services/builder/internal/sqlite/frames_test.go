package sqlite

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Frames come out of their rows as they went in, and no row is large but for a
// large frame.
func TestPartsAndFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint64Range(1, 1<<40).Draw(t, "first")
		var want []build.Frame
		for range rapid.IntRange(0, 20).Draw(t, "frames") {
			size := rapid.SampledFrom([]int{0, 1, 127, 128, 20_000, 100_000}).Draw(t, "size")
			want = append(want, build.Frame{Sequence: first + uint64(len(want)), Data: bytes.Repeat([]byte{byte(len(want))}, size)})
		}
		var got []build.Frame
		for p := range parts(first, want) {
			before := len(got)
			for frame, err := range p.frames {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, frame)
			}
			if last := got[len(got)-1]; before == len(got) || len(p.data)-len(last.Data) > partBytes {
				t.Fatalf("a row of %d bytes with %d frames", len(p.data), len(got)-before)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d frames, want %d", len(got), len(want))
		}
		for i := range want {
			if got[i].Sequence != want[i].Sequence || !bytes.Equal(got[i].Data, want[i].Data) {
				t.Fatalf("frame %d is %d with %d bytes", i, got[i].Sequence, len(got[i].Data))
			}
		}
	})
}

// FuzzFrames holds the reading of rows to an end, whatever they hold.
func FuzzFrames(f *testing.F) {
	for p := range parts(1, []build.Frame{{Sequence: 1, Data: []byte("a")}, {Sequence: 2}, {Sequence: 3, Data: []byte("bc")}}) {
		f.Add(p.data)
		f.Add(p.data[:len(p.data)-1])
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		for frame, err := range (part{first: 1, data: data}).frames {
			if err != nil {
				return
			}
			total += len(frame.Data) + 1
		}
		if total > len(data) {
			t.Errorf("%d bytes out of %d", total, len(data))
		}
	})
}
