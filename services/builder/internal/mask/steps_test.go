package mask

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// build is a build with one secret.
func begin(s *Steps, secret string, steps ...string) *View {
	set := NewSet(0)
	if secret != "" {
		set.Add([]byte(secret))
	}
	v := s.Begin(set)
	for _, step := range steps {
		v.Saw(step)
	}
	return v
}

func text(v *View, step, text string) string {
	m, withheld := v.Masker(step)
	if withheld {
		return "withheld"
	}
	return m.Text(text)
}

const both = "secret-a secret-b"

// What a step writes is masked for all builds that have it, what another step writes for
// the build's own secrets only: else one caller could try out another's.
func TestSteps_MaskWhatAStepWritesForAllThatHaveIt(t *testing.T) {
	s := NewSteps()
	a, b := begin(s, "secret-a", "common", "of a"), begin(s, "secret-b", "common", "of b")
	for _, test := range []struct {
		of         *View
		step, want string
	}{
		{a, "common", "*** ***"}, {b, "common", "*** ***"}, {a, "of a", "*** secret-b"}, {b, "of b", "secret-a ***"},
		{b, "of a", "*** ***"}, // B shows it, whether B has said that it has it or not
	} {
		if got := text(test.of, test.step, both); got != test.want {
			t.Errorf("step %q is told as %q, want %q", test.step, got, test.want)
		}
	}
	if m, _ := b.Others("common"); m.Text(both) != "*** secret-b" {
		t.Errorf("others' secrets only: %q", m.Text(both))
	}
	late := begin(s, "", "common")
	if got := text(late, "common", both); got != "*** ***" {
		t.Errorf("a build without secrets shows %q", got)
	}
	a.Own().Add([]byte("secret-c"))
	if got := text(late, "common", "secret-c"); got != Replacement {
		t.Errorf("a secret that comes later is told as %q", got)
	}
}

// A step goes on when the build that gave it its secret ends, as long as another has it.
func TestSteps_KeepSecretsWhileAStepMayGoOn(t *testing.T) {
	s := NewSteps()
	a, slow, b := begin(s, "secret-a", "common"), begin(s, ""), begin(s, "", "common")
	a.End()
	if got := text(b, "common", both); got != "*** secret-b" {
		t.Errorf("after the end of A: %q", got)
	}
	c := begin(s, "", "common")
	b.End()
	if got := text(c, "common", both); got != "*** secret-b" {
		t.Errorf("after the end of B: %q", got)
	}
	c.End()
	slow.Saw("common") // the daemon had it for this build, too, and says so late
	if got := text(slow, "common", both); got != "*** secret-b" {
		t.Errorf("after the end of C: %q", got)
	}
	slow.End()
	if len(s.steps)+len(s.past)+len(s.kept)+s.bytes != 0 {
		t.Errorf("%d steps are kept when no build is under way", len(s.steps))
	}
	d := begin(s, "", "common")
	if got := text(d, "common", both); got != both || !d.Alone() {
		t.Errorf("a build that came after all: %q, alone %t", got, d.Alone())
	}
}

// Whatever builds come and go: nothing is kept once none is under way, and what is kept
// for steps of the past stays in its bound.
func TestSteps_KeepNothingForGood(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := NewSteps()
		var live []*View
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				secret := rapid.SampledFrom([]string{"", "secret-a", "secret-b"}).Draw(t, "secret")
				live = append(live, begin(s, secret))
			},
			"saw": func(t *rapid.T) {
				if len(live) > 0 {
					at := rapid.IntRange(0, len(live)-1).Draw(t, "of")
					live[at].Saw(rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "step"))
				}
			},
			"end": func(t *rapid.T) {
				if len(live) > 0 {
					at := rapid.IntRange(0, len(live)-1).Draw(t, "of")
					live[at].End()
					live = append(live[:at], live[at+1:]...)
				}
			},
			"": func(t *rapid.T) {
				if len(live) == 0 && len(s.steps)+len(s.past)+len(s.kept)+s.bytes+len(s.views) != 0 {
					t.Fatalf("%d steps, %d past ones and %d sets are kept", len(s.steps), len(s.past), len(s.kept))
				}
			},
		})
	})
}

// Clients that left while one long build goes on do not fill the memory.
func TestSteps_BoundWhatIsKept(t *testing.T) {
	s := NewSteps()
	begin(s, "")
	for i := range 12 {
		set := NewSet(24 << 20)
		set.Add(fmt.Appendf(nil, "%d%0*d", i, 300<<10, 0))
		v := s.Begin(set)
		v.Saw(fmt.Sprint(i))
		v.End()
	}
	if s.bytes > maxPastBytes || len(s.past) == 0 {
		t.Errorf("%d bytes of %d are kept, of %d steps", s.bytes, maxPastBytes, len(s.past))
	}
}

// More different sets than a text is masked for: what the step writes is withheld.
func TestSteps_WithholdWhatTooManyMayHaveGivenSecretsTo(t *testing.T) {
	s := NewSteps()
	one := begin(s, "", "common")
	for range 2 * maxShared {
		begin(s, "the same secret", "common")
	}
	if got := text(one, "common", "the same secret"); got != Replacement {
		t.Errorf("builds of the same secret: %q", got)
	}
	for i := range maxShared {
		begin(s, fmt.Sprintf("secret %d", i), "common")
	}
	if got := text(one, "common", "secret 1"); got != "withheld" {
		t.Errorf("builds of %d secrets: %q", maxShared+1, got)
	}
}
