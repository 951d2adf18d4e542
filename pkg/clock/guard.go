package clock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Guard says whether ages can be counted by the host's clock. A clock that jumps makes
// everything look old at once, so whoever deletes by age asks Check first.
//
// The clock is compared with the time that passed since the host has started, which no
// setting of the clock moves and which counts suspends, and after a restart of the host
// with the last time that was seen before. After a jump nothing is trusted until the
// clock is back, the operator confirms the new time by a file, or the new time has
// lasted for a day while the service ran, which counts across restarts; for an hour when
// the host was just off for some weeks.
type Guard struct {
	opts Options
	read func() reading // what the clocks say now

	asking sync.Mutex // held while the sources are read

	mu       sync.Mutex
	sources  []Source
	seen     seen
	hasAsked bool
	asked    time.Duration // when the sources were read last, since the host's start
	saved    time.Duration // when seen was written, since the host's start
}

// seen is what a Guard knows of the clock. It is kept in the state directory.
type seen struct {
	reading        // the last that was trusted
	Doubt   *doubt `json:"doubt,omitempty"` // nil: the clock is trusted
	// Sources is what other clocks said, by name; one for each source.
	Sources map[string]*answer `json:"sources,omitempty"`
}

// doubt is a new time that is not trusted yet.
type doubt struct {
	Last   reading       `json:"last"`   // of the new time
	Lasted time.Duration `json:"lasted"` // how long the clock went on from it without a jump
	told   string        // why, as far as the log has it
}

// Options is what a Guard is made of.
type Options struct {
	// StateDir is the directory that the last time seen is kept in, and that an operator
	// confirms a new time in.
	StateDir string
	// Newest is the newest time in what the service has stored, for a directory that no
	// Guard has been in. Zero: nothing is stored.
	Newest time.Time
	Log    *slog.Logger
	Meter  metric.MeterProvider
}

// reading is what the clocks say at one moment.
type reading struct {
	Wall   time.Time     `json:"wall"`
	Passed time.Duration `json:"passed"` // since the host has started
	Boot   string        `json:"boot"`   // id of that start
}

// Bounds of what is plausible.
const (
	drift        = 10 * time.Minute    // that NTP corrects without a jump
	maxOff       = 14 * 24 * time.Hour // that a host is switched off
	maxPause     = 3 * 24 * time.Hour  // that a virtual machine is paused, which its kernel does not count
	confirmAfter = 24 * time.Hour      // that a new time must last
	// A host that was off for up to maxIdle is as likely as a clock that is wrong: then
	// the time must last for idleAfter only.
	maxIdle    = 100 * 24 * time.Hour
	idleAfter  = time.Hour
	saveEvery  = 30 * time.Second
	checkEvery = time.Minute
)

// earliest is before any time at which this program runs.
var earliest = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Files of a state directory.
const (
	lastSeenFile = "clock.json"
	confirmFile  = "clock.confirm"
)

// NewGuard returns a Guard that goes on from what the last one has seen.
func NewGuard(opts Options) (*Guard, error) {
	boot := bootID()
	g := &Guard{opts: opts, read: func() reading { return reading{Now().Round(0), passed(), boot} }}
	text, err := os.ReadFile(filepath.Join(opts.StateDir, lastSeenFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		g.seen.Wall = opts.Newest
	case err != nil:
		return nil, fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE", "the last time seen cannot be read",
			"let the service read its state_dir")
	case json.Unmarshal(text, &g.seen) != nil: // cut by a power failure
		g.seen = seen{reading: reading{Wall: opts.Newest}}
	}
	meter := opts.Meter.Meter("github.com/kilnbuild/kiln/pkg/clock")
	_, err = meter.Int64ObservableGauge("kiln.clock.jumped",
		metric.WithDescription("1 while the host's clock is not trusted after a jump and nothing is deleted by age"),
		metric.WithUnit("{jump}"),
		metric.WithInt64Callback(func(ctx context.Context, o metric.Int64Observer) error {
			jumped := int64(0)
			if g.Check(ctx) != nil {
				jumped = 1
			}
			o.Observe(jumped)
			return nil
		}))
	return g, errors.Join(err, g.observe(meter))
}

// Check looks at the clocks. Its error is a FAILED_PRECONDITION fault (CLOCK_JUMPED),
// which says that nothing may be deleted by age now, and what an operator does about it.
func (g *Guard) Check(ctx context.Context) error {
	g.askIfDue(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.read()
	why, disputed := implausible(g.seen.reading, now), g.disputed(now)
	if why == "" && disputed == "" {
		if g.seen.Doubt != nil {
			g.opts.Log.InfoContext(ctx, "the host's clock is plausible again", "time", now.Wall)
		}
		g.trust(ctx, now)
		return nil
	}
	lasts := why != "" && disputed == "" // so that the new time is trusted some time
	if disputed != "" {
		why = disputed
	}
	if g.confirmed() {
		g.opts.Log.InfoContext(ctx, "the new time of the host's clock is confirmed", "time", now.Wall, "was", why)
		g.acceptSources(now)
		g.trust(ctx, now)
		return nil
	}
	remedy := g.remedy(now, lasts)
	if g.doubt(ctx, now, why, remedy) >= mustLast(g.seen.reading, now) && lasts {
		g.opts.Log.WarnContext(ctx, "the new time of the host's clock has lasted, and is trusted", "time", now.Wall, "was", why)
		g.trust(ctx, now)
		return nil
	}
	return fault.New(fault.FailedPrecondition, "CLOCK_JUMPED", "the host's clock cannot be trusted: "+why+g.unread(), remedy)
}

// doubt notes a time that is not trusted, and returns how long it has lasted. mu is held.
func (g *Guard) doubt(ctx context.Context, now reading, why, remedy string) time.Duration {
	d := g.seen.Doubt
	if d == nil || !d.goesOn(now) {
		d = &doubt{Last: now}
		g.seen.Doubt, g.saved = d, 0
	}
	if d.told == "" {
		d.told = why
		g.opts.Log.ErrorContext(ctx, "the host's clock is not trusted; nothing is deleted by age",
			"why", why, "time", now.Wall, "last", g.seen.Wall, "remedy", remedy)
	}
	if now.Boot == d.Last.Boot {
		d.Lasted += max(0, now.Passed-d.Last.Passed)
	}
	d.Last = now
	g.keep(ctx, now)
	return d.Lasted
}

// goesOn reports whether a reading goes on from a new time, so that this has lasted. A
// pause of a virtual machine is no jump here: a laptop's has one each night, and would
// never be trusted again.
func (d *doubt) goesOn(now reading) bool {
	if implausible(d.Last, now) == "" {
		return true
	}
	paused := now.Wall.Sub(d.Last.Wall) - (now.Passed - d.Last.Passed)
	return now.Boot == d.Last.Boot && paused > 0 && paused <= maxPause
}

// mustLast returns how long a new time must last until it is trusted.
func mustLast(last, now reading) time.Duration {
	off := now.Wall.Sub(last.Wall)
	if now.Boot != last.Boot && off > 0 && off <= maxIdle {
		return idleAfter
	}
	return confirmAfter
}

// remedy says what to do, and how long to wait if waiting helps.
func (g *Guard) remedy(now reading, lasts bool) string {
	confirm := filepath.Join(g.opts.StateDir, confirmFile)
	if !lasts {
		return fmt.Sprintf("set the clock that is wrong, of this host or of the other, and wait a minute; "+
			"if the time of this host is right, confirm it with `touch %s`", confirm)
	}
	return fmt.Sprintf("set the clock; if its time is right, confirm it with `touch %s`, or wait for %s",
		confirm, mustLast(g.seen.reading, now))
}

// implausible says why a clock cannot be trusted that was right at the last reading;
// nothing when it can.
func implausible(last, now reading) string {
	if now.Wall.Before(earliest) {
		return fmt.Sprintf("it says %s", now.Wall.UTC().Format(time.RFC3339))
	}
	if last.Wall.IsZero() {
		return ""
	}
	moved := now.Wall.Sub(last.Wall)
	if now.Boot != "" && now.Boot == last.Boot {
		if by := moved - (now.Passed - last.Passed); by.Abs() > drift {
			return fmt.Sprintf("it has jumped by %s", by.Round(time.Second))
		}
		return ""
	}
	switch {
	case moved < -drift:
		return fmt.Sprintf("it is %s behind what was seen before the host started", -moved.Round(time.Second))
	case moved > maxOff:
		return fmt.Sprintf("it is %s ahead of what was seen before the host started", moved.Round(time.Second))
	}
	return ""
}

// confirmed reports whether an operator has confirmed the time, which counts once. mu is
// held.
func (g *Guard) confirmed() bool {
	return os.Remove(filepath.Join(g.opts.StateDir, confirmFile)) == nil
}

// trust makes a reading the one that the next is compared with. mu is held.
func (g *Guard) trust(ctx context.Context, now reading) {
	if g.seen.Doubt != nil {
		g.saved = 0
	}
	g.seen = seen{reading: now, Sources: g.seen.Sources}
	g.keep(ctx, now)
}

// keep writes what was seen now and then. mu is held.
func (g *Guard) keep(ctx context.Context, now reading) {
	if g.saved != 0 && now.Passed-g.saved < saveEvery {
		return
	}
	g.saved = now.Passed
	if g.seen.Doubt == nil {
		_ = g.confirmed() // A confirmation that is left would be of the next jump, which nobody has seen.
	}
	if err := g.save(); err != nil {
		g.opts.Log.WarnContext(ctx, "the time cannot be noted in the state directory", "error", err)
	}
}

func (g *Guard) save() error {
	text, err := json.Marshal(g.seen)
	if err != nil {
		return err
	}
	path := filepath.Join(g.opts.StateDir, lastSeenFile)
	if err := os.WriteFile(path+".part", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".part", path)
}

// Run checks the clock each minute until ctx ends, so that a jump is told when it comes,
// and that the last time seen is never older.
func (g *Guard) Run(ctx context.Context) error {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		g.Ask(ctx)
		_ = g.Check(ctx) // It says what is wrong in the log.
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
