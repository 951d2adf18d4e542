package clock

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/pkg/fault"
)

const (
	day  = 24 * time.Hour
	year = 365 * day
)

// host is what a guard reads: its clock, what has passed since it started, and which
// start that was.
type host struct{ now reading }

func newHost() *host {
	return &host{reading{Wall: time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC), Passed: time.Hour, Boot: "one"}}
}

// pass lets time pass, which the clock follows.
func (h *host) pass(d time.Duration) { h.now.Wall, h.now.Passed = h.now.Wall.Add(d), h.now.Passed+d }

// jump sets the clock.
func (h *host) jump(d time.Duration) { h.now.Wall = h.now.Wall.Add(d) }

// reboot switches the host off for a while; its clock may go on from elsewhere.
func (h *host) reboot(off time.Duration) {
	h.now = reading{Wall: h.now.Wall.Add(off), Passed: 20 * time.Second, Boot: h.now.Boot + "+"}
}

func (h *host) guard(t testing.TB, dir string, newest time.Time, log *bytes.Buffer) *Guard {
	t.Helper()
	g, err := NewGuard(Options{
		StateDir: dir, Newest: newest, Log: slog.New(slog.NewTextHandler(log, nil)), Meter: noop.NewMeterProvider(),
	})
	if err != nil {
		t.Fatal(err)
	}
	g.read = func() reading { return h.now }
	return g
}

func TestGuard_TellsJumpsFromTimeThatPassed(t *testing.T) {
	for name, test := range map[string]struct {
		happens func(h *host)
		trusted bool
	}{
		"an hour passes":              {func(h *host) { h.pass(time.Hour) }, true},
		"months pass while it runs":   {func(h *host) { h.pass(100 * day) }, true},
		"a laptop sleeps for a night": {func(h *host) { h.pass(10 * time.Hour) }, true}, // suspends count as passed
		"NTP corrects a little":       {func(h *host) { h.pass(time.Hour); h.jump(-2 * time.Minute) }, true},
		"forward by months":           {func(h *host) { h.jump(90 * day) }, false},
		"forward by two days":         {func(h *host) { h.pass(time.Minute); h.jump(2 * day) }, false},
		"back by a year":              {func(h *host) { h.jump(-year) }, false},
		"to 1970":                     {func(h *host) { h.now.Wall = time.Unix(100, 0) }, false},
		"off for a weekend":           {func(h *host) { h.reboot(3 * day) }, true},
		"off for a year":              {func(h *host) { h.reboot(year) }, false},
		"boots in the past":           {func(h *host) { h.reboot(-day) }, false},
		"boots in 1970":               {func(h *host) { h.reboot(0); h.now.Wall = time.Unix(20, 0) }, false},
		"boots in 1970, then NTP": {func(h *host) {
			h.reboot(time.Minute)
			h.pass(time.Minute)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			h, dir := newHost(), t.TempDir()
			running := h.guard(t, dir, time.Time{}, &bytes.Buffer{})
			if err := running.Check(t.Context()); err != nil {
				t.Fatalf("a fresh install: %v", err)
			}
			test.happens(h)
			for where, g := range map[string]*Guard{"running": running, "started again": h.guard(t, dir, time.Time{}, &bytes.Buffer{})} {
				err := g.Check(t.Context())
				if (err == nil) != test.trusted {
					t.Errorf("%s: %v, trusted should be %v", where, err, test.trusted)
				}
				if f, ok := errors.AsType[*fault.Error](err); err != nil && (!ok || f.Reason != "CLOCK_JUMPED" || !strings.Contains(f.Remedy, dir)) {
					t.Errorf("%s: %#v", where, err)
				}
			}
		})
	}
}

// A machine without a clock of its own boots in 1970 and gets the time from NTP: what it
// has is safe before, and trusted after.
func TestGuard_FirstSyncAtBoot(t *testing.T) {
	h, dir := newHost(), t.TempDir()
	if err := h.guard(t, dir, time.Time{}, &bytes.Buffer{}).Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	real := h.now.Wall.Add(5 * time.Minute)
	h.reboot(0)
	h.now.Wall = time.Unix(20, 0)
	g := h.guard(t, dir, time.Time{}, &bytes.Buffer{})
	if g.Check(t.Context()) == nil {
		t.Error("1970 is trusted")
	}
	h.now.Wall = real
	if err := g.Check(t.Context()); err != nil {
		t.Errorf("after the sync: %v", err)
	}
}

// Without a file of its own, the newest of what is stored is the last time seen.
func TestGuard_ComparesWithWhatIsStored(t *testing.T) {
	for name, test := range map[string]struct {
		newest  time.Duration // from now
		trusted bool
	}{
		"yesterday": {-day, true}, "a month ago": {-30 * day, false}, "tomorrow": {day, false},
	} {
		h := newHost()
		err := h.guard(t, t.TempDir(), h.now.Wall.Add(test.newest), &bytes.Buffer{}).Check(t.Context())
		if (err == nil) != test.trusted {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A jump is told once, in the log, and ends when the clock is set right, when the
// operator confirms the new time, or when that has lasted for a day.
func TestGuard_TrustsAgain(t *testing.T) {
	for name, test := range map[string]struct {
		happens func(t *testing.T, h *host, dir string)
		trusted bool
	}{
		"nothing":         {func(*testing.T, *host, string) {}, false},
		"hours":           {func(_ *testing.T, h *host, _ string) { h.pass(20 * time.Hour) }, false},
		"set right":       {func(_ *testing.T, h *host, _ string) { h.pass(time.Hour); h.jump(-90 * day) }, true},
		"lasts for a day": {func(_ *testing.T, h *host, _ string) { h.pass(25 * time.Hour) }, true},
		"confirmed": {func(t *testing.T, _ *host, dir string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, confirmFile), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			h, dir := newHost(), t.TempDir()
			var log bytes.Buffer
			g := h.guard(t, dir, time.Time{}, &log)
			_ = g.Check(t.Context())
			h.jump(90 * day)
			for range 3 {
				if g.Check(t.Context()) == nil {
					t.Fatal("the jump is not seen")
				}
			}
			if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
				t.Errorf("%d errors in the log:\n%s", n, &log)
			}
			test.happens(t, h, dir)
			if err := g.Check(t.Context()); (err == nil) != test.trusted {
				t.Errorf("%v, trusted should be %v", err, test.trusted)
			}
			h.pass(time.Minute)
			if err := g.Check(t.Context()); (err == nil) != test.trusted {
				t.Errorf("a minute later: %v", err)
			}
			if _, err := os.Stat(filepath.Join(dir, confirmFile)); err == nil {
				t.Error("the confirmation is still there")
			}
		})
	}
}

// A stack that runs for an afternoon each month deletes what is old in it, too.
func TestGuard_TrustsSoonAfterWeeksOff(t *testing.T) {
	for name, test := range map[string]struct {
		off     time.Duration
		trusted bool
	}{"three weeks": {21 * day, true}, "three months": {90 * day, true}, "a year": {year, false}} {
		h, dir := newHost(), t.TempDir()
		_ = h.guard(t, dir, time.Time{}, &bytes.Buffer{}).Check(t.Context())
		h.reboot(test.off)
		g := h.guard(t, dir, time.Time{}, &bytes.Buffer{})
		if g.Check(t.Context()) == nil {
			t.Errorf("%s: trusted at once", name)
		}
		h.pass(2 * time.Hour)
		if err := g.Check(t.Context()); (err == nil) != test.trusted {
			t.Errorf("%s: %v after two hours, trusted should be %v", name, err, test.trusted)
		}
	}
}

// A laptop that was off for weeks and is off, or a virtual machine that is paused, each
// night never runs for a day at a stretch. What lasts is counted over its days.
func TestGuard_TrustsAgainOverManyDays(t *testing.T) {
	for name, test := range map[string]struct {
		night   func(h *host)
		trusted bool
	}{
		"switched off each night": {func(h *host) { h.reboot(14 * time.Hour) }, true},
		"paused each night":       {func(h *host) { h.jump(14 * time.Hour) }, true},
		"jumps by weeks each day": {func(h *host) { h.jump(30 * day) }, false},
		"jumps back each day":     {func(h *host) { h.jump(-5 * day) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			h, dir := newHost(), t.TempDir()
			_ = h.guard(t, dir, time.Time{}, &bytes.Buffer{}).Check(t.Context())
			h.reboot(year)
			trusted := false
			for range 5 {
				g := h.guard(t, dir, time.Time{}, &bytes.Buffer{})
				for range 20 {
					trusted = trusted || g.Check(t.Context()) == nil
					h.pass(30 * time.Minute)
				}
				test.night(h)
			}
			if trusted != test.trusted {
				t.Errorf("trusted: %v, should be %v", trusted, test.trusted)
			}
		})
	}
}

// A time that is not trusted yet does not vouch for another one.
func TestGuard_ASecondJumpIsDoubtedAnew(t *testing.T) {
	h, dir := newHost(), t.TempDir()
	g := h.guard(t, dir, time.Time{}, &bytes.Buffer{})
	_ = g.Check(t.Context())
	h.jump(90 * day)
	_ = g.Check(t.Context())
	h.pass(23 * time.Hour)
	_ = g.Check(t.Context())
	h.jump(10 * year)
	_ = g.Check(t.Context())
	h.pass(2 * time.Hour)
	if g.Check(t.Context()) == nil {
		t.Error("the second jump is trusted after two hours")
	}
}

// A confirmation that nobody needed does not confirm a later jump.
func TestGuard_AnOldConfirmationIsNone(t *testing.T) {
	h, dir := newHost(), t.TempDir()
	g := h.guard(t, dir, time.Time{}, &bytes.Buffer{})
	_ = g.Check(t.Context())
	if err := os.WriteFile(filepath.Join(dir, confirmFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.pass(time.Hour)
	_ = g.Check(t.Context())
	h.jump(90 * day)
	if g.Check(t.Context()) == nil {
		t.Error("the jump is trusted")
	}
}

// Whatever happens to the clock, an age that is counted while the guard trusts it is, but
// for the drift of each jump that is too small to see, of time that has really passed.
func TestGuard_NeverTrustsAJump(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h, dir := newHost(), t.TempDir()
		g := h.guard(t, dir, time.Time{}, &bytes.Buffer{})
		_ = g.Check(t.Context())
		began := h.now.Wall
		passed, steps := time.Duration(0), rapid.IntRange(1, 15).Draw(rt, "steps")
		for range steps {
			by := time.Duration(rapid.Int64Range(-int64(3*day), int64(3*day)).Draw(rt, "by"))
			switch rapid.SampledFrom([]string{"pass", "jump", "restart"}).Draw(rt, "what") {
			case "pass":
				by = by.Abs() % time.Hour // no jump lasts until it is trusted
				h.pass(by)
				passed += by
			case "jump":
				h.jump(by)
			case "restart":
				g = h.guard(t, dir, time.Time{}, &bytes.Buffer{})
			}
			if g.Check(t.Context()) != nil {
				continue
			}
			if off := h.now.Wall.Sub(began) - passed; off.Abs() > time.Duration(steps)*drift {
				rt.Fatalf("the clock is trusted though it is off by %s", off)
			}
		}
	})
}

// The host's own clocks agree.
func TestGuard_OfThisHost(t *testing.T) {
	g, err := NewGuard(Options{StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Meter: noop.NewMeterProvider()})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := g.Check(t.Context()); err != nil || passed() <= 0 || bootID() == "" {
			t.Errorf("%v, %s since the start %q", err, passed(), bootID())
		}
	}
}

// A file that was cut by a power failure is as good as none.
func TestGuard_AFileThatIsCut(t *testing.T) {
	h, dir := newHost(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, lastSeenFile), []byte(`{"wall":"20`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.guard(t, dir, h.now.Wall, &bytes.Buffer{}).Check(t.Context()); err != nil {
		t.Error(err)
	}
}
