package mask

// Stream hides the values in a text that comes in chunks, wherever these are cut.
// What it returns is what Text makes of the whole, with a delay: the end of what
// has come is held back while it may begin a value. What several values share is
// hidden once, and so are values without anything between them. A nil Stream
// hides nothing.
type Stream struct {
	automata []*automaton
	states   []int32 // of each automaton
	passed   int     // how many bytes were passed on
	held     []byte  // those that were not, yet
	hidden   []span  // of what is held: in order, with something between them
	hiding   bool    // the last byte that was passed on was hidden
}

// span is the bytes of the text from one up to another.
type span struct{ from, to int }

// Write takes a chunk and returns what may be passed on.
func (s *Stream) Write(chunk []byte) []byte {
	if s == nil {
		return chunk
	}
	for _, b := range chunk {
		s.take(b)
	}
	begun := int32(0) // of the longest value that may have begun
	for i, a := range s.automata {
		begun = max(begun, a.states[s.states[i]].depth)
	}
	return s.pass(len(s.held) - int(begun))
}

// Flush returns what was held back: the text ends here. A further one may follow.
func (s *Stream) Flush() []byte {
	if s == nil {
		return nil
	}
	clear(s.states)
	rest := s.pass(len(s.held))
	s.hiding = false
	return rest
}

// take holds a further byte of the text.
func (s *Stream) take(b byte) {
	s.held = append(s.held, b)
	found := int32(0)
	for i, a := range s.automata {
		s.states[i] = a.step(s.states[i], b)
		found = max(found, a.states[s.states[i]].found)
	}
	if found > 0 {
		s.hide(int(found))
	}
}

// hide notes that the last n bytes are to be hidden.
func (s *Stream) hide(n int) {
	to := s.passed + len(s.held)
	from, last := to-n, len(s.hidden)-1
	for ; last >= 0 && s.hidden[last].to >= from; last-- {
		from, to = min(from, s.hidden[last].from), max(to, s.hidden[last].to)
	}
	s.hidden = append(s.hidden[:last+1], span{from, to})
}

// pass returns the first n bytes that are held, masked.
func (s *Stream) pass(n int) []byte {
	var out []byte
	show := func(upTo int) {
		if count := upTo - s.passed; count > 0 {
			out, s.hiding = append(out, s.held[:count]...), false
			s.held, s.passed = s.held[count:], upTo
		}
	}
	end := s.passed + n
	for len(s.hidden) > 0 && s.hidden[0].from < end {
		h := s.hidden[0]
		show(h.from)
		if !s.hiding {
			out, s.hiding = append(out, Replacement...), true
		}
		upTo := min(end, h.to)
		s.held, s.passed = s.held[upTo-s.passed:], upTo
		if h.to > end {
			break // Its rest is held.
		}
		s.hidden = s.hidden[1:]
	}
	show(end)
	return out
}
