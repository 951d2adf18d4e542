package mask

// automaton finds all of a set of words in a text, in time linear in both (Aho,
// Corasick: Efficient string matching, 1975). Its states are the beginnings of
// the words; the state after a text is the longest beginning that the text ends
// with. State 0 is the empty one.
type automaton struct {
	states  []state
	start   [256]int32     // from state 0, by the next byte
	forks   map[edge]int32 // further edges, of states with more than one
	parents []int32        // of the states, until link
}

// state is a beginning of words. Most have one continuation, which then is the
// next state in the array.
type state struct {
	depth int32 // its length
	shift int32 // the state of its longest end that is a beginning too
	found int32 // length of the longest word that it ends with; 0: none
	last  byte  // its last byte
	goes  bool  // the next state in the array continues it
	forks bool  // and so do others
}

type edge struct {
	from int32
	by   byte
}

func newAutomaton() *automaton {
	return &automaton{states: make([]state, 1), parents: make([]int32, 1), forks: map[edge]int32{}}
}

func (a *automaton) empty() bool { return len(a.states) == 1 }

// add adds a word. All are added before link.
func (a *automaton) add(word []byte) {
	at := int32(0)
	for _, b := range word {
		next := a.edge(at, b)
		if next == 0 {
			next = int32(len(a.states))
			switch at {
			case 0:
				a.start[b] = next
			case next - 1:
				a.states[at].goes = true
			default:
				a.states[at].forks = true
				a.forks[edge{at, b}] = next
			}
			a.states = append(a.states, state{depth: a.states[at].depth + 1, last: b})
			a.parents = append(a.parents, at)
		}
		at = next
	}
	a.states[at].found = a.states[at].depth
}

// edge returns the state that a byte leads to, 0 when none does.
func (a *automaton) edge(from int32, by byte) int32 {
	if from == 0 {
		return a.start[by]
	}
	s := &a.states[from]
	if s.goes && a.states[from+1].last == by {
		return from + 1
	}
	if s.forks {
		return a.forks[edge{from, by}]
	}
	return 0
}

// step returns the state after a further byte.
func (a *automaton) step(at int32, by byte) int32 {
	for {
		if next := a.edge(at, by); next != 0 || at == 0 {
			return next
		}
		at = a.states[at].shift
	}
}

// link sets where to go on when a beginning is not continued, from the short
// beginnings to the long ones. Nothing is added after it.
func (a *automaton) link() {
	for _, at := range a.byDepth()[1:] {
		s := &a.states[at]
		if parent := a.parents[at]; parent != 0 {
			s.shift = a.step(a.states[parent].shift, s.last)
		}
		if s.found == 0 {
			s.found = a.states[s.shift].found
		}
	}
	a.parents = nil
}

// byDepth returns all states, those of small depth first.
func (a *automaton) byDepth() []int32 {
	var first []int // of each depth, in the result
	for _, s := range a.states {
		for int(s.depth)+1 >= len(first) {
			first = append(first, 0)
		}
		first[s.depth+1]++
	}
	for depth := 1; depth < len(first); depth++ {
		first[depth] += first[depth-1]
	}
	sorted := make([]int32, len(a.states))
	for at, s := range a.states {
		sorted[first[s.depth]] = int32(at)
		first[s.depth]++
	}
	return sorted
}
