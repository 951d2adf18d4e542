package mask

import (
	"cmp"
	"slices"
)

// Logs hides values in what the steps of a build write. It is of one goroutine.
type Logs struct {
	of      func(step string) (m *Masker, withheld bool)
	streams map[key]*Stream
}

// key is one of the streams of a step.
type key struct {
	step   string
	number int
}

// Rest is what was held back of a stream.
type Rest struct {
	Step   string
	Number int
	Data   []byte
}

// NewLogs returns an empty Logs. of returns, at any time, the masker of a step, and whether
// what the step writes must not be told at all.
func NewLogs(of func(step string) (m *Masker, withheld bool)) *Logs {
	return &Logs{of: of, streams: make(map[key]*Stream)}
}

// Write takes what a step has written and returns what may be told of it now. The end of
// it is held back while it may begin a value.
func (l *Logs) Write(step string, number int, data []byte) []byte {
	m, withheld := l.of(step)
	if withheld {
		return nil
	}
	at := key{step, number}
	s := m.Resume(l.streams[at])
	if s == nil {
		return data
	}
	l.streams[at] = s
	return s.Write(data)
}

// End ends the streams of a step, and returns what was held back of them.
func (l *Logs) End(step string) []Rest { return l.flush(func(k key) bool { return k.step == step }) }

// EndAll ends all streams, and returns what was held back of them.
func (l *Logs) EndAll() []Rest { return l.flush(func(key) bool { return true }) }

func (l *Logs) flush(which func(key) bool) []Rest {
	var all []Rest
	for at, s := range l.streams {
		if !which(at) {
			continue
		}
		delete(l.streams, at)
		if data := s.Flush(); len(data) > 0 {
			all = append(all, Rest{at.step, at.number, data})
		}
	}
	slices.SortFunc(all, func(a, b Rest) int { return cmp.Or(cmp.Compare(a.Step, b.Step), cmp.Compare(a.Number, b.Number)) })
	return all
}
