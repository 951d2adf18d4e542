package outcome

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

type write struct {
	stderr bool
	data   string
}

func TestTail_KeepsTheLastLines(t *testing.T) {
	for name, tc := range map[string]struct {
		writes []write
		want   []string
	}{
		"lines in pieces":      {[]write{{false, "on"}, {false, "e\ntw"}, {false, "o\r\n"}, {false, "thr"}}, []string{"one", "two", "thr"}},
		"streams in between":   {[]write{{false, "on"}, {true, "err\n"}, {false, "e\n"}, {true, "last"}}, []string{"err", "one", "last"}},
		"nothing":              {nil, nil},
		"not UTF-8":            {[]write{{false, "a\xffb\n"}}, []string{"a\uFFFDb"}},
		"a line without end":   {[]write{{false, strings.Repeat("x", 3*tailLineBytes)}}, []string{strings.Repeat("x", tailLineBytes)}},
		"both without an end":  {[]write{{true, "e"}, {false, "o"}}, []string{"o", "e"}},
		"a notice of BuildKit": {[]write{{false, "a\n[output clipped, log limit 200KiB/s reached]\nb\n"}}, []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			var kept tail
			for _, w := range tc.writes {
				kept.write(w.stderr, []byte(w.data))
			}
			if got := kept.last(); !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	t.Run("no more than 20", func(t *testing.T) {
		var kept tail
		kept.write(false, numberedLines("line", 100))
		kept.write(false, []byte("end"))
		got := kept.last()
		if len(got) != tailLines || got[0] != "line 81" || got[tailLines-1] != "end" {
			t.Errorf("got %d lines, %q to %q", len(got), got[0], got[len(got)-1])
		}
	})
}

func numberedLines(word string, n int) []byte {
	var all bytes.Buffer
	for i := range n {
		fmt.Fprintf(&all, "%s %d\n", word, i)
	}
	return all.Bytes()
}

// The end of a clipped stream comes after all that the other one wrote, and does not
// push it out of the report.
func TestFailureOf_KeepsBothStreamsWhenOneWasClipped(t *testing.T) {
	id := digest.FromString("step")
	p := NewProgress()
	clipped := 0
	for _, l := range []*client.VertexLog{
		{Vertex: id, Stream: 1, Data: []byte("out\n\n[output clipped, log limit 2MiB reached]\n")},
		{Vertex: id, Stream: 2, Data: []byte("make: *** [all] Error 1\n")},
		{Vertex: id, Stream: 1, Data: numberedLines("out", 500)}, // as BuildKit flushes at the end
	} {
		p.Update(&client.SolveStatus{Logs: []*client.VertexLog{l}}, func(event any) {
			if event.(build.LogEvent).Clipped { //nolint:forcetypeassert // nothing else was told
				clipped++
			}
		})
	}
	f := FailureOf(t.Context(), errdefs.WrapVertex(fmt.Errorf("exit code: 2"), id), p)
	if last := f.LogTail[len(f.LogTail)-1]; !f.LogClipped || last != "make: *** [all] Error 1" || len(f.LogTail) != tailLines {
		t.Errorf("clipped %t, %d lines: %q", f.LogClipped, len(f.LogTail), f.LogTail)
	}
	if !slices.Contains(f.LogTail, "out 499") || clipped != 1 {
		t.Errorf("%d events say that output was clipped; lines %q", clipped, f.LogTail)
	}
}
