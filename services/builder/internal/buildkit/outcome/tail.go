package outcome

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
)

// How much of a step's output is kept for the report of its failure.
const (
	tailLines     = 20
	tailLineBytes = 4096
)

// clipNotice is what BuildKit writes where it drops output, with a limit such as
// "2MiB" or "200KiB/s"; see its util/progress/logs.
var clipNotice = regexp.MustCompile(`\[output clipped, log limit [^\]\n]{1,32} reached\]`)

// isClipped reports whether BuildKit drops output after data.
func isClipped(data []byte) bool { return clipNotice.Match(data) }

// tail keeps the last lines of a step, of each of its streams: BuildKit shows the end
// of a clipped stream when the step has ended, after all that the other one wrote.
type tail struct {
	streams [2]streamTail // standard output, standard error
	lines   int           // so far, of both
	clipped bool
}

// streamTail is the last lines of one stream.
type streamTail struct {
	lines   []numbered
	partial []byte // of a line that has not ended
}

// numbered is a line with its place among the lines of the step.
type numbered struct {
	n    int
	text string
}

// write takes what the step wrote.
func (t *tail) write(stderr bool, data []byte) {
	s := &t.streams[0]
	if stderr {
		s = &t.streams[1]
	}
	s.partial = append(s.partial, data...)
	for {
		end := bytes.IndexByte(s.partial, '\n')
		if end < 0 {
			break
		}
		t.end(s, s.partial[:end])
		s.partial = s.partial[end+1:]
	}
	if len(s.partial) > tailLineBytes {
		t.end(s, s.partial)
		s.partial = nil
	}
}

// end takes a line that has ended. A notice of BuildKit is no line of the step.
func (t *tail) end(s *streamTail, line []byte) {
	if isClipped(line) {
		t.clipped = true
		return
	}
	t.lines++
	s.lines = append(s.lines, numbered{t.lines, clip(line)})
	if extra := len(s.lines) - tailLines; extra > 0 {
		s.lines = slices.Delete(s.lines, 0, extra)
	}
}

func clip(line []byte) string {
	line = bytes.TrimSuffix(line, []byte("\r"))
	return strings.ToValidUTF8(string(line[:min(len(line), tailLineBytes)]), "\uFFFD")
}

// last returns the last lines, in the order in which they came. When output was
// clipped that order says nothing: then the last lines of standard output come first,
// and then those of standard error, with room for half of the lines each.
func (t *tail) last() []string {
	out, errs := t.streams[0].all(t.lines+1), t.streams[1].all(t.lines+2)
	both := slices.Concat(out, errs)
	if t.clipped {
		fromErr := min(len(errs), max(tailLines/2, tailLines-len(out)))
		fromOut := min(len(out), tailLines-fromErr)
		both = slices.Concat(out[len(out)-fromOut:], errs[len(errs)-fromErr:])
	} else {
		slices.SortStableFunc(both, func(a, b numbered) int { return a.n - b.n })
	}
	var lines []string
	for _, line := range both[max(0, len(both)-tailLines):] {
		lines = append(lines, line.text)
	}
	return lines
}

// all is the lines of a stream, with the one that has not ended as the n-th of the step.
func (s *streamTail) all(n int) []numbered {
	if len(s.partial) == 0 {
		return s.lines
	}
	return append(slices.Clone(s.lines), numbered{n, clip(s.partial)})
}
