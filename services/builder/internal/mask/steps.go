package mask

import (
	"crypto/sha256"
	"maps"
	"slices"
	"sync"
)

// Steps knows the steps of the builds that daemons are working on, and whose secrets these
// may be given. A daemon runs a step that several builds have in common once, with the
// secrets of one of them, and shows what it writes in all. So what a step writes is masked
// for the secrets of all builds that have it.
//
// Only these, and only in what the step itself wrote: if one caller's secrets were masked
// in texts that another chooses, the other could find out by trying.
type Steps struct {
	mu    sync.Mutex
	began uint64 // builds so far
	views map[*View]bool
	steps map[string]*shared
	past  []pastStep // steps of no build under way, by when the last one ended
	kept  map[*Set]kept
	bytes int // of the sets that are kept for past steps
}

// shared is a step as the builds see it.
type shared struct {
	sets map[*Set]bool // of the builds that have had it
	live int           // builds under way
	past uint64        // when the last build ended: how many had begun
}

type pastStep struct {
	step string
	past uint64
	sets []*Set
}

// kept is a set that past steps have.
type kept struct{ steps, bytes int }

// Bounds of what is kept.
const (
	maxSteps     = 50_000   // of one build
	maxPast      = 50_000   // steps of no build under way
	maxPastBytes = 48 << 20 // of their secrets
	maxShared    = 64       // different sets of secrets that one step is masked for
)

// NewSteps returns a Steps without builds.
func NewSteps() *Steps {
	return &Steps{views: make(map[*View]bool), steps: make(map[string]*shared), kept: make(map[*Set]kept)}
}

// View is one build at a daemon. Several goroutines may use it.
type View struct {
	steps *Steps // nil: the build is alone
	own   *Set
	begun uint64
	seen  map[string]bool
}

// Begin takes a build up that a daemon is about to get. own are the secrets that the build
// gives to the daemon, also those that are added later. The View must be ended. A nil Steps
// gives a View that shares nothing.
func (s *Steps) Begin(own *Set) *View {
	v := &View{steps: s, own: own, seen: make(map[string]bool)}
	if s == nil {
		return v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began++
	v.begun = s.began
	s.views[v] = true
	return v
}

// Own returns the secrets that the build itself gives.
func (v *View) Own() *Set { return v.own }

// Saw notes a step of the build, by its digest.
func (v *View) Saw(step string) {
	s := v.steps
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.seen[step] || len(v.seen) >= maxSteps || !s.views[v] {
		return
	}
	v.seen[step] = true
	at := s.steps[step]
	if at == nil {
		at = &shared{sets: make(map[*Set]bool)}
		s.steps[step] = at
	}
	at.live++
	at.sets[v.own] = true
}

// Masker returns the masker of what a step writes. withheld is true when the text must not
// be told because it cannot be masked.
func (v *View) Masker(step string) (m *Masker, withheld bool) {
	if v.own.Full() {
		return nil, true
	}
	others, withheld := v.others(step)
	return join(append(others, v.own.Masker())), withheld
}

// Others returns the masker of what a step writes, for the secrets of other builds only.
func (v *View) Others(step string) (m *Masker, withheld bool) {
	others, withheld := v.others(step)
	return join(append(others, nil)), withheld
}

func (v *View) others(step string) (all []*Masker, withheld bool) {
	s := v.steps
	if s == nil {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.steps[step]
	if at == nil || len(at.sets) == 1 && at.sets[v.own] {
		return nil, false
	}
	known := map[[sha256.Size]byte]bool{v.own.print(): true}
	for set := range at.sets {
		m := set.Masker()
		if m == nil {
			continue
		}
		if print := set.print(); !known[print] {
			known[print] = true
			all = append(all, m)
		}
	}
	if len(all) > maxShared {
		return nil, true
	}
	return all, false
}

// Alone reports whether no other build could have given a secret to a step of this one.
func (v *View) Alone() bool {
	s := v.steps
	if s == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.past) > 0 {
		return false
	}
	for other := range s.views {
		if other.own != v.own && other.own.Masker() != nil {
			return false
		}
	}
	return true
}

// End ends the build. The secrets of its steps are kept while a build is under way that
// was so already: it may have one of the steps, and not have said so yet.
func (v *View) End() {
	s := v.steps
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.views[v] {
		return
	}
	delete(s.views, v)
	for step := range v.seen {
		at := s.steps[step]
		if at.live--; at.live > 0 {
			continue
		}
		if !at.secretive() {
			delete(s.steps, step)
			continue
		}
		at.past = s.began
		s.past = append(s.past, pastStep{step, at.past, slices.Collect(maps.Keys(at.sets))})
		for set := range at.sets {
			s.keep(set)
		}
	}
	s.forget()
}

func (at *shared) secretive() bool {
	for set := range at.sets {
		if set.Masker() != nil {
			return true
		}
	}
	return false
}

// keep counts a set that a past step has. mu is held.
func (s *Steps) keep(set *Set) {
	k := s.kept[set]
	if k.steps == 0 {
		k.bytes = set.bytes()
		s.bytes += k.bytes
	}
	k.steps++
	s.kept[set] = k
}

// drop is the opposite of keep. mu is held.
func (s *Steps) drop(set *Set) {
	k := s.kept[set]
	if k.steps--; k.steps > 0 {
		s.kept[set] = k
		return
	}
	delete(s.kept, set)
	s.bytes -= k.bytes
}

// forget drops past steps that no build under way can have, and the oldest ones over the
// bounds. mu is held.
func (s *Steps) forget() {
	oldest := s.began + 1
	for v := range s.views {
		oldest = min(oldest, v.begun)
	}
	for len(s.past) > 0 {
		first := s.past[0]
		at := s.steps[first.step]
		again := at == nil || at.live > 0 || at.past != first.past // a build has taken it up since
		if !again && first.past >= oldest && len(s.past) <= maxPast && s.bytes <= maxPastBytes {
			return
		}
		s.past = s.past[1:]
		for _, set := range first.sets {
			s.drop(set)
		}
		if !again {
			delete(s.steps, first.step)
		}
	}
	s.past = nil
}
