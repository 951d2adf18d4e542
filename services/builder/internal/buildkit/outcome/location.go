package outcome

import (
	"fmt"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Bounds of a snippet.
const (
	maxSnippetLines     = 20
	maxSnippetLineBytes = 512
)

// location is the innermost place in a source that BuildKit names.
func location(err error) *build.Location {
	sources := errdefs.Sources(err)
	for i := len(sources) - 1; i >= 0; i-- {
		source := sources[i]
		lines := spans(source.GetRanges())
		if source.GetInfo() == nil || len(lines) == 0 {
			continue
		}
		first, last := lines[0].start, lines[0].end
		for _, l := range lines {
			first, last = min(first, l.start), max(last, l.end)
		}
		return &build.Location{
			File: strings.ToValidUTF8(source.Info.Filename, "\uFFFD"), StartLine: first, EndLine: last,
			Snippet: snippet(string(source.Info.Data), lines, first, last),
		}
	}
	return nil
}

// span is lines of a file, from 1, both included.
type span struct{ start, end int }

// spans reads ranges as a client sent them: the end of one may be missing, or lie
// before its start or be negative.
func spans(ranges []*pb.Range) []span {
	var all []span
	for _, r := range ranges {
		if r.GetStart() == nil {
			continue
		}
		start := max(0, int(r.Start.Line))
		all = append(all, span{start, max(start, int(r.GetEnd().GetLine()))})
	}
	return all
}

// snippet shows lines of a file with their numbers, those of the spans marked, and one
// or two around them, as BuildKit does.
func snippet(text string, marked []span, first, last int) string {
	lines := strings.Split(text, "\n")
	if first < 1 || first > len(lines) {
		return ""
	}
	around := 1
	if first == last {
		around = 2
	}
	from, to := max(1, first-around), min(len(lines), min(len(lines), last)+around)
	var out strings.Builder
	for n := from; n <= min(to, from+maxSnippetLines-1); n++ {
		mark := "   "
		for _, s := range marked {
			if s.start <= n && n <= s.end {
				mark = ">>>"
			}
		}
		line := lines[n-1]
		if len(line) > maxSnippetLineBytes {
			line = line[:maxSnippetLineBytes] + "…"
		}
		fmt.Fprintf(&out, " %3d | %s %s\n", n, mark, strings.ToValidUTF8(line, "\uFFFD"))
	}
	return out.String()
}
