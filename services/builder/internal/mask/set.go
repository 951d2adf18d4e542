package mask

import (
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
	values [][]byte
	known  map[string]bool
	held   int
}

// NewSet returns an empty set whose masker holds at most max bytes of memory.
func NewSet(max int) *Set { return &Set{max: max} }

// Add adds values and keeps copies of them. When it returns, texts that a stream of
// the set is given are masked for them.
func (s *Set) Add(values ...[]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.values)
	for _, value := range values {
		key := string(value)
		if s.known[key] || s.full.Load() {
			continue
		}
		if s.held += cost(value); s.max > 0 && s.held > s.max {
			s.full.Store(true)
			return
		}
		if s.known == nil {
			s.known = make(map[string]bool)
		}
		s.known[key] = true
		s.values = append(s.values, []byte(key))
	}
	if len(s.values) > before {
		s.masker.Store(New(s.values))
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
	if m == nil || s != nil && s.automaton == m.automaton {
		return s
	}
	if s == nil {
		return m.Stream()
	}
	held := s.held
	s.automaton, s.state, s.held = m.automaton, 0, nil
	for _, b := range held {
		s.take(b)
	}
	return s
}
