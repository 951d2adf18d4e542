package clock

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Source is another clock that the host's clock is compared with, such as that of a daemon
// or of a registry. One that cannot be read neither forbids nor allows a deletion.
type Source interface {
	// Name tells the source apart in messages, in metrics and across restarts.
	Name() string
	// Time asks for the time. ctx bounds it to a few seconds.
	Time(ctx context.Context) (time.Time, error)
}

// NewSource makes a Source of a function.
func NewSource(name string, read func(ctx context.Context) (time.Time, error)) Source {
	return source{name, read}
}

type source struct {
	name string
	read func(ctx context.Context) (time.Time, error)
}

func (s source) Name() string { return s.name }

func (s source) Time(ctx context.Context) (time.Time, error) { return s.read(ctx) }

// Bounds of the questions to sources.
const (
	askTimeout = 3 * time.Second
	// askAgain is how long answers count. Run asks each checkEvery.
	askAgain = checkEvery + 10*askTimeout
)

// answer is what a source said last. It is kept in the state directory, so that a source
// that disagreed and cannot be read any more still disagrees.
type answer struct {
	At       reading       `json:"at"`                 // the host's clocks at the answer; zero: there was none
	Ahead    time.Duration `json:"ahead"`              // of the host's clock
	Accepted time.Duration `json:"accepted,omitempty"` // the difference that an operator confirmed
	err      error         // why it could not be read the last time
}

// ahead returns how far the host's clock is ahead of the source by now.
func (a *answer) ahead(now reading) time.Duration {
	if now.Boot == "" || now.Boot != a.At.Boot {
		return a.Ahead
	}
	return a.Ahead + now.Wall.Sub(a.At.Wall) - (now.Passed - a.At.Passed)
}

// disagrees reports whether the clocks differ, and by more than an operator confirmed.
func (a *answer) disagrees(now reading) bool {
	if a.At.Wall.IsZero() {
		return false
	}
	by := a.ahead(now)
	return by.Abs() > drift && (by-a.Accepted).Abs() > drift
}

// Compare has the host's clock compared with sources, from the next Check on. It is called
// once, and forgets what sources that are not among these said to an earlier process.
func (g *Guard) Compare(sources ...Source) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sources = sources
	said := g.seen.Sources
	g.seen.Sources = make(map[string]*answer, len(sources))
	for _, s := range sources {
		g.seen.Sources[s.Name()] = &answer{}
		if a := said[s.Name()]; a != nil {
			g.seen.Sources[s.Name()] = a
		}
	}
}

// Ask reads all sources, each within three seconds. Check does it by itself when the last
// answers are older than a minute and a half.
func (g *Guard) Ask(ctx context.Context) {
	g.asking.Lock()
	defer g.asking.Unlock()
	g.mu.Lock()
	sources := g.sources
	g.mu.Unlock()
	var wait sync.WaitGroup
	for _, s := range sources {
		wait.Go(func() {
			asked, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			says, err := s.Time(asked)
			g.note(ctx, s.Name(), says, err)
		})
	}
	wait.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hasAsked, g.asked = true, g.read().Passed
}

// askIfDue asks when the last answers do not count any more.
func (g *Guard) askIfDue(ctx context.Context) {
	g.mu.Lock()
	due := len(g.sources) > 0 && (!g.hasAsked || g.read().Passed-g.asked > askAgain)
	g.mu.Unlock()
	if due {
		g.Ask(ctx)
	}
}

// note keeps the answer of a source.
func (g *Guard) note(ctx context.Context, name string, says time.Time, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.seen.Sources[name]
	if err != nil {
		if a.err == nil && ctx.Err() == nil {
			g.opts.Log.WarnContext(ctx, "the host's clock cannot be compared with another; it is judged without",
				"source", name, "error", err)
		}
		a.err = err
		return
	}
	if a.err != nil {
		g.opts.Log.InfoContext(ctx, "the host's clock is compared with another again", "source", name)
	}
	now := g.read()
	a.At, a.Ahead, a.err = now, now.Wall.Sub(elsewhere(says)), nil
	if a.Ahead.Abs() <= drift {
		a.Accepted = 0
	}
}

// disputed says which source disagrees with the host's clock; nothing when none does. mu is
// held.
func (g *Guard) disputed(now reading) string {
	for _, s := range g.sources {
		a := g.seen.Sources[s.Name()]
		if !a.disagrees(now) {
			continue
		}
		by, side := a.ahead(now).Round(time.Second), "ahead of"
		if by < 0 {
			by, side = -by, "behind"
		}
		why := fmt.Sprintf("it is %s %s the clock of %s", by, side, s.Name())
		if a.err != nil {
			why += ", which cannot be asked any more: " + a.err.Error()
		}
		return why
	}
	return ""
}

// unread names the sources that could not be read. mu is held.
func (g *Guard) unread() string {
	text := ""
	for _, s := range g.sources {
		if err := g.seen.Sources[s.Name()].err; err != nil {
			text += fmt.Sprintf("; the clock of %s cannot be read: %v", s.Name(), err)
		}
	}
	return text
}

// acceptSources has the differences of now count as confirmed. mu is held.
func (g *Guard) acceptSources(now reading) {
	for _, a := range g.seen.Sources {
		if a.disagrees(now) {
			a.Accepted = a.ahead(now)
		}
	}
}

// observe reports what the sources say.
func (g *Guard) observe(meter metric.Meter) error {
	ahead, err := meter.Float64ObservableGauge("kiln.clock.ahead", metric.WithUnit("s"),
		metric.WithDescription("How far the host's clock is ahead of that of a source, by its last answer"))
	if err != nil {
		return err
	}
	readable, err := meter.Int64ObservableGauge("kiln.clock.source.readable", metric.WithUnit("{source}"),
		metric.WithDescription("1 while a source that the host's clock is compared with can be read"))
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, s := range g.sources {
			a, label := g.seen.Sources[s.Name()], metric.WithAttributes(attribute.String("source", s.Name()))
			if !a.At.Wall.IsZero() {
				o.ObserveFloat64(ahead, a.ahead(g.read()).Seconds(), label)
			}
			up := int64(0)
			if a.err == nil && !a.At.Wall.IsZero() {
				up = 1
			}
			o.ObserveInt64(readable, up, label)
		}
		return nil
	}, ahead, readable)
	return err
}
