package state_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
)

// With runs alone, and no listener, the time since the first of them counts as age; the time between
// that and the last beat of a listener does not, and nor does all of it for a listener that comes.
func TestUnheard_TimeCountsAsAgeFromTheFirstRunOn(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	away := func(since time.Time) time.Duration {
		t.Helper()
		return must(s.Uses(t.Context()))(t).Away(since)
	}
	if err := s.Beat(t.Context(), now, now); err != nil {
		t.Fatal(err)
	}
	first := now.Add(3 * day)
	for hour := range 30 * 24 {
		at := first.Add(time.Duration(hour) * time.Hour)
		if err := s.Unheard(t.Context(), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if got := away(now); got != 3*day {
		t.Errorf("since the last beat %s do not count, want %s", got, 3*day)
	}
	if got := away(first); got != 0 {
		t.Errorf("since the first run %s do not count, want none", got)
	}
	back := first.Add(30 * day)
	if err := s.Beat(t.Context(), back, back); err != nil {
		t.Fatal(err)
	}
	if got := away(now); got != 33*day {
		t.Errorf("when a listener is there again %s do not count, want %s", got, 33*day)
	}
}

// What was used since a time is what the janitor was told of since, whatever the clock of who tells.
func TestUsesSince_IsByReceipt(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	record := func(digest string, at, heard time.Time) {
		t.Helper()
		must(s.RecordUses(t.Context(), []lastuse.Use{{Repository: "app", Name: lastuse.Name(digest), At: at, Heard: heard}}))(t)
	}
	record("told later by a clock that is behind", now.Add(-time.Hour), now.Add(time.Minute))
	record("told before by a clock that is ahead", now.Add(time.Hour), now.Add(-time.Minute))
	record("again", now.Add(-2*time.Hour), now.Add(-time.Minute))
	record("again", now.Add(-3*time.Hour), now.Add(time.Minute))
	record("told by nobody", now.Add(time.Hour), time.Time{})
	book := must(s.UsesSince(t.Context(), now))(t)
	for name, want := range map[string]bool{
		"told later by a clock that is behind": true, "again": true, "told before by a clock that is ahead": false, "told by nobody": false,
	} {
		_, pulled := book.Last("app", content.Digest(name), nil)
		if pulled.IsZero() == want {
			t.Errorf("%s: used since is %t", name, !want)
		}
	}
}
