package mask

import (
	"crypto/sha256"
	"slices"
	"sync"
	"sync/atomic"
)

// Set is a set of values to hide that grows, as those of a build whose secrets
// become known while it runs. The zero value is empty and has no bound. It may be
// used by several goroutines.
type Set struct {
	max    int // 0: no bound
	masker atomic.Pointer[Masker]
	full   atomic.Bool

	mu     sync.Mutex
	known  map[string]bool
	held   int
	prints [sha256.Size]byte // the digests of the values, by exclusive or
	levels []level           // from large to small, each at least twice as large as the next
}

// level is some of the values of a set, and the automaton that finds them. A value that is
// added makes a small level; levels of about one size are merged into one. So a value is
// in few automata that are made, and a text passes few.
type level struct {
	values    [][]byte
	size      int
	automaton *automaton // nil: the values are too short to hide
}

// NewSet returns an empty set whose masker holds at most max bytes of memory.
func NewSet(max int) *Set { return &Set{max: max} }

// Add adds values and keeps copies of them. When it returns, texts that a stream of
// the set is given are masked for them.
func (s *Set) Add(values ...[]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var added level
	for _, value := range values {
		key := string(value)
		if s.known[key] || s.full.Load() {
			continue
		}
		if s.held += cost(value); s.max > 0 && s.held > s.max {
			s.full.Store(true)
			break
		}
		if s.known == nil {
			s.known = make(map[string]bool)
		}
		s.known[key] = true
		for i, b := range sha256.Sum256(value) {
			s.prints[i] ^= b
		}
		added.values, added.size = append(added.values, []byte(key)), added.size+cost(value)
	}
	if len(added.values) > 0 {
		s.push(added)
	}
}

// push adds a level, merges it with those that are not twice as large, and publishes the
// masker of all. mu is held.
func (s *Set) push(l level) {
	for n := len(s.levels) - 1; n >= 0 && s.levels[n].size < 2*l.size; n-- {
		l.values, l.size = append(l.values, s.levels[n].values...), l.size+s.levels[n].size
		s.levels = s.levels[:n]
	}
	l.automaton = automatonOf(l.values)
	s.levels = append(s.levels, l)
	var all []*automaton
	for _, l := range s.levels {
		if l.automaton != nil {
			all = append(all, l.automaton)
		}
	}
	if len(all) > 0 {
		s.masker.Store(&Masker{all})
	}
}

// cost is what a masker holds for a value at most; see Masker.
func cost(value []byte) int {
	if len(value) <= MaxEncoded {
		return 260 * len(value)
	}
	return 32 * len(value)
}

// Masker returns a masker of the values that are in the set now, nil when there is
// none to hide.
func (s *Set) Masker() *Masker { return s.masker.Load() }

// Full reports whether a value was left out because the values would take too much
// memory. Texts cannot be masked then, and must be withheld.
func (s *Set) Full() bool { return s.full.Load() }

// Resume goes on with a text that another masker has begun to mask. What the
// stream holds back is masked for the values of m too.
func (m *Masker) Resume(s *Stream) *Stream {
	if m == nil || s != nil && slices.Equal(s.automata, m.automata) {
		return s
	}
	if s == nil {
		return m.Stream()
	}
	held := s.held
	s.automata, s.states, s.held = m.automata, make([]int32, len(m.automata)), nil
	for _, b := range held {
		s.take(b)
	}
	return s
}

// bytes returns how much memory the masker of the values takes at most.
func (s *Set) bytes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

// print tells sets of different values apart: the sum of the digests of their values.
func (s *Set) print() [sha256.Size]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.prints
}
