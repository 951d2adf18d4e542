package mask

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func TestSet_MasksValuesThatComeLater(t *testing.T) {
	var set Set
	var s *Stream
	var got bytes.Buffer
	write := func(text string) {
		s = set.Masker().Resume(s)
		got.Write(s.Write([]byte(text)))
	}
	write("nothing is hidden yet; ")
	set.Add([]byte("first-secret"))
	write("first-secret, first-")
	set.Add([]byte("second-secret"))
	write("secret, second-secret, firs")
	got.Write(s.Flush())
	if want := "nothing is hidden yet; ***, ***, ***, firs"; got.String() != want {
		t.Errorf("%q, want %q", got.String(), want)
	}
}

func TestSet_IsFullBeforeItsMaskerHoldsTooMuch(t *testing.T) {
	set := NewSet(10 << 10)
	set.Add([]byte("a-secret"))
	set.Add(make([]byte, 100))
	if !set.Full() || set.Masker().Text("a-secret") != Replacement {
		t.Error("a value that would take 26 KB went in, or the one before is forgotten")
	}
	set.Add([]byte("one-more"))
	if got := set.Masker().Text("one-more"); got != "one-more" {
		t.Errorf("a full set took another value: %q", got)
	}
}

// Wherever values become known and the text is cut: a value is hidden wherever it
// begins after it was added.
func TestResume_HidesWhatIsKnownWhereverTheTextIsCut(t *testing.T) {
	alphabet := rapid.SampledFrom([]byte("ab"))
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.SliceOfN(alphabet, 4, 8), 1, 4).Draw(t, "values")
		first := rapid.IntRange(0, len(all)).Draw(t, "first")
		var set Set
		var s *Stream
		var got []byte
		write := func(text []byte) {
			if s = set.Masker().Resume(s); s != nil {
				text = s.Write(text)
			}
			got = append(got, text...)
		}
		set.Add(all[:first]...)
		for known := first; ; known++ {
			for range rapid.IntRange(0, 5).Draw(t, "chunks") {
				write(rapid.SliceOfN(alphabet, 1, 10).Draw(t, "text"))
			}
			if known >= len(all) {
				break
			}
			set.Add(all[known])
			write([]byte("|"))
		}
		got = append(got, s.Flush()...)
		shown := func(text []byte, values [][]byte) bool { return New(values).Text(string(text)) != string(text) }
		if shown(got, all[:first]) || shown(got[bytes.LastIndexByte(got, '|')+1:], all) {
			t.Fatalf("%q shows one of %q, of which %d were known first", got, all, first)
		}
	})
}

// Many values one after the other take about as long as all at once, and a text passes few
// automata for them.
func TestSet_AddsManyValuesOneByOne(t *testing.T) {
	set, made := NewSet(0), 0
	for i := range 5000 {
		before := set.levels
		set.Add(fmt.Appendf(nil, "secret number %d", i))
		if last := set.levels[len(set.levels)-1]; len(before) == 0 || last.automaton != before[len(before)-1].automaton {
			made += len(last.values)
		}
	}
	if most := 5000 * 20; made > most {
		t.Errorf("%d values went into automata, want at most %d", made, most)
	}
	if n := len(set.Masker().automata); n > 20 {
		t.Errorf("a text passes %d automata", n)
	}
	for _, i := range []int{0, 1, 2500, 4999} {
		if got := set.Masker().Text(fmt.Sprintf("<secret number %d>", i)); got != "<***>" {
			t.Errorf("secret %d is told as %q", i, got)
		}
	}
}
