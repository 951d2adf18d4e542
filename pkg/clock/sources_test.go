package clock

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// other is the clock of another host: right, unless it is off.
type other struct {
	host *host // what time passes by
	at   reading
	off  time.Duration
	err  error
}

func newOther(h *host) *other { return &other{host: h, at: h.now} }

func (o *other) Name() string { return "the other" }

func (o *other) Time(context.Context) (time.Time, error) {
	return o.at.Wall.Add(o.host.now.Passed - o.at.Passed + o.off), o.err
}

// A clock that is wrong already when the service comes to a host is known by another's.
func TestGuard_ComparesWithOtherClocks(t *testing.T) {
	for name, test := range map[string]struct {
		happens func(h *host, o *other)
		trusted bool
	}{
		"they agree":                    {func(*host, *other) {}, true},
		"five minutes apart":            {func(_ *host, o *other) { o.off = 5 * time.Minute }, true},
		"the host's is ahead":           {func(_ *host, o *other) { o.off = -90 * day }, false},
		"the host's is behind":          {func(_ *host, o *other) { o.off = 2 * day }, false},
		"the other cannot be read":      {func(_ *host, o *other) { o.off, o.err = -90*day, errors.New("down") }, true},
		"the host's jumps, other reads": {func(h *host, _ *other) { h.jump(90 * day) }, false},
		"jumps while the other is down": {func(h *host, o *other) { o.err = errors.New("down"); h.jump(90 * day) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost()
			o := newOther(h)
			g := h.guard(t, t.TempDir(), h.now.Wall, &bytes.Buffer{})
			g.Compare(o)
			test.happens(h, o)
			err := g.Check(t.Context())
			if (err == nil) != test.trusted {
				t.Errorf("%v, trusted should be %v", err, test.trusted)
			}
			if err != nil && o.err != nil && !strings.Contains(err.Error(), "the clock of the other cannot be read: down") {
				t.Errorf("the error hides the source that cannot be read: %v", err)
			}
		})
	}
}

// A difference lasts until a clock is set, also when its source cannot be read any more and
// when the service starts again; neither a day nor an unread source ends it.
func TestGuard_ADifferenceLasts(t *testing.T) {
	for name, test := range map[string]struct {
		happens func(t *testing.T, h *host, o *other, dir string)
		trusted bool
	}{
		"two days":               {func(_ *testing.T, h *host, _ *other, _ string) { h.pass(2 * day) }, false},
		"the source goes away":   {func(_ *testing.T, h *host, o *other, _ string) { o.err = errors.New("down"); h.pass(2 * day) }, false},
		"the other clock is set": {func(_ *testing.T, h *host, o *other, _ string) { o.off = 0; h.pass(time.Hour) }, true},
		"the host's clock is set, and the other is down": {func(_ *testing.T, h *host, o *other, _ string) {
			o.err = errors.New("down")
			h.jump(-90 * day)
		}, true},
		"confirmed": {func(t *testing.T, h *host, _ *other, dir string) {
			t.Helper()
			confirm(t, dir)
			h.pass(time.Hour)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			h, dir := newHost(), t.TempDir()
			o := newOther(h)
			o.off = -90 * day
			var log bytes.Buffer
			running := h.guard(t, dir, time.Time{}, &log)
			running.Compare(o)
			if running.Check(t.Context()) == nil {
				t.Fatal("the difference is not seen")
			}
			test.happens(t, h, o, dir)
			again := h.guard(t, dir, time.Time{}, &log)
			again.Compare(o)
			for where, g := range map[string]*Guard{"running": running, "started again": again} {
				if where == "started again" && name == "confirmed" {
					continue // The confirmation was used up by the other.
				}
				for range 2 { // again, once its answer was stored
					h.pass(2 * askAgain)
					if err := g.Check(t.Context()); (err == nil) != test.trusted {
						t.Errorf("%s: %v, trusted should be %v", where, err, test.trusted)
					}
				}
			}
		})
	}
}

func confirm(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, confirmFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// What an operator confirms is that difference: after a restart too, but not a later one.
func TestGuard_AConfirmedDifferenceIsThatOne(t *testing.T) {
	h, dir := newHost(), t.TempDir()
	o := newOther(h)
	o.off = -2 * day
	g := h.guard(t, dir, time.Time{}, &bytes.Buffer{})
	g.Compare(o)
	confirm(t, dir)
	if err := g.Check(t.Context()); err != nil {
		t.Fatalf("confirmed: %v", err)
	}
	g = h.guard(t, dir, time.Time{}, &bytes.Buffer{})
	g.Compare(o)
	h.pass(time.Hour)
	if err := g.Check(t.Context()); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	o.off = -9 * day
	h.pass(time.Hour)
	err := g.Check(t.Context())
	if err == nil || !strings.Contains(err.Error(), "it is 216h0m0s ahead of the clock of the other") {
		t.Errorf("another difference: %v", err)
	}
}

// A source that hangs does not hold a Check up for longer than its bound.
func TestGuard_ASourceThatHangs(t *testing.T) {
	h := newHost()
	g := h.guard(t, t.TempDir(), time.Time{}, &bytes.Buffer{})
	g.Compare(NewSource("hung", func(ctx context.Context) (time.Time, error) {
		<-ctx.Done()
		return time.Time{}, ctx.Err()
	}))
	began := time.Now()
	if err := g.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 2*askTimeout {
		t.Errorf("Check took %s", took)
	}
	if _ = g.Check(t.Context()); time.Since(began) > 2*askTimeout {
		t.Error("the next Check asked again at once")
	}
}
