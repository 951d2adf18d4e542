// Package mask hides secret values in what a build writes.
//
// It finds values that a build has printed as they are, one line of them, or in
// base64. It cannot find what was changed in another way: masking keeps secrets
// out of logs by mistake, not against a build that means to tell them.
package mask

import (
	"bytes"
	"encoding/base64"
	"slices"
)

const (
	// Replacement stands for what was hidden.
	Replacement = "***"
	// MinValue is the length of the shortest value that is hidden, in bytes,
	// without the white space around it. Shorter ones are in every text.
	MinValue = 4
	// MinLine is the length of the shortest line of a value of several lines that
	// is hidden where it stands alone, in bytes, without white space around it.
	MinLine = 8
	// MaxEncoded is the length of the longest value whose base64 forms are hidden.
	MaxEncoded = 16 << 10

	// minEncoded is the shortest piece of base64 that is worth hiding.
	minEncoded = 6
)

// Masker hides values. A nil Masker hides nothing. It may be used by several
// goroutines. It holds at most 32 bytes for each byte of a value, and 260 where
// the value is no longer than MaxEncoded.
type Masker struct{ automata []*automaton }

// New returns a masker of the values, nil when there is none to hide.
func New(values [][]byte) *Masker {
	a := automatonOf(values)
	if a == nil {
		return nil
	}
	return &Masker{[]*automaton{a}}
}

// automatonOf returns an automaton that finds the forms of values, nil when there are none.
func automatonOf(values [][]byte) *automaton {
	a := newAutomaton()
	for _, value := range values {
		for _, form := range forms(value) {
			a.add(form)
		}
	}
	if a.empty() {
		return nil
	}
	a.link()
	return a
}

// join returns a masker of the values of several.
func join(maskers []*Masker) *Masker {
	if len(maskers) == 1 {
		return maskers[0]
	}
	var all []*automaton
	for _, m := range maskers {
		if m != nil {
			all = append(all, m.automata...)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return &Masker{all}
}

// Text hides the values in a text that is whole: a name, an error.
func (m *Masker) Text(text string) string {
	if m == nil {
		return text
	}
	s := m.Stream()
	masked := s.Write([]byte(text))
	return string(append(masked, s.Flush()...))
}

// Stream returns a masker of a text that comes in chunks. It is of one goroutine.
func (m *Masker) Stream() *Stream {
	if m == nil {
		return nil
	}
	return &Stream{automata: m.automata, states: make([]int32, len(m.automata))}
}

// forms returns what is looked for to hide a value.
func forms(value []byte) [][]byte {
	trimmed := bytes.TrimSpace(value)
	if len(trimmed) < MinValue {
		return nil
	}
	all := [][]byte{trimmed}
	for line := range bytes.Lines(trimmed) {
		if line = bytes.TrimSpace(line); len(line) >= MinLine {
			all = append(all, line)
		}
	}
	if len(value) <= MaxEncoded {
		for _, form := range encoded(value, trimmed) {
			all = append(all, form)
			if web := webAlphabet(form); !bytes.Equal(web, form) {
				all = append(all, web)
			}
		}
	}
	return all
}

// encoded returns the base64 forms of a value: alone, in the lines that base64(1)
// and openssl break it into, and the part that is the same wherever the value
// stands within what was encoded, as in "Authorization: Basic".
func encoded(value, trimmed []byte) [][]byte {
	var all [][]byte
	for _, alone := range [][]byte{value, trimmed} {
		text := base64.RawStdEncoding.AppendEncode(nil, alone)
		all = append(all, text)
		for _, width := range []int{76, 64} {
			for line := range slices.Chunk(text, width) {
				if len(line) >= minEncoded {
					all = append(all, line)
				}
			}
		}
	}
	for before := range 3 {
		text := base64.RawStdEncoding.AppendEncode(nil, append(make([]byte, before), trimmed...))
		const bits = 6 // of a letter
		from, to := (8*before+bits-1)/bits, 8*(before+len(trimmed))/bits
		if to-from >= minEncoded {
			all = append(all, text[from:to])
		}
	}
	return all
}

// webAlphabet is a base64 text in the alphabet for URLs and file names.
func webAlphabet(text []byte) []byte {
	return bytes.ReplaceAll(bytes.ReplaceAll(text, []byte("+"), []byte("-")), []byte("/"), []byte("_"))
}
