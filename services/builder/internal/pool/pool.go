// Package pool knows the buildkitd daemons of the fleet, asks them again and
// again how they are, and picks one for each build. It has one member for now.
package pool

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Member is what the pool needs of a daemon.
type Member interface {
	Name() string
	Address() string
	// Check asks the daemon how it is. The pool bounds ctx.
	Check(ctx context.Context) (Info, error)
}

// Info is what a daemon says of itself.
type Info struct {
	Version   string
	Platforms []string
}

// Status is how a daemon was when it was last asked.
type Status struct {
	Name, Address string
	Info          Info      // of the last check that went well
	Err           error     // nil: it answered
	Checked       time.Time // zero: not asked yet
	Answered      time.Time // last check that went well; zero: none yet
	FailingSince  time.Time // when the first check that failed was begun; zero: it answered
	Missed        int       // checks in a row that failed
}

// Unreachable reports whether the daemon has failed several checks in a row, over a span of time. A
// daemon that has missed one is busy, or is being restarted.
func (s Status) Unreachable() bool {
	return s.Missed >= unreachableChecks && s.Checked.Sub(s.FailingSince) >= unreachableAfter
}

// How often daemons are asked, and how long they may take to answer. A build is sent to
// a daemon on an answer no older than fresh. A daemon is unreachable once it has failed
// unreachableChecks in a row, the first of them begun unreachableAfter ago: one that
// hangs after at most 8 s, one that refuses connections after 6 s.
const (
	checkEvery   = 2 * time.Second
	checkTimeout = 3 * time.Second
	fresh        = time.Second

	unreachableChecks = 2
	unreachableAfter  = 4 * time.Second
	checkAgain        = 500 * time.Millisecond // after a failed check that a build waits for
)

// Pool is a fleet of daemons.
type Pool[M Member] struct {
	member M
	log    *slog.Logger
	asking singleflight.Group

	mu     sync.Mutex
	status Status
}

// New returns a pool of one member. Run asks it how it is.
func New[M Member](member M, log *slog.Logger) *Pool[M] {
	return &Pool[M]{
		member: member, log: log,
		status: Status{Name: member.Name(), Address: member.Address()},
	}
}

// Run checks the members until ctx ends.
func (p *Pool[M]) Run(ctx context.Context) error {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		_ = p.check(ctx) // remembered, and logged when it is news
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Pick returns a member for a build. It asks again when the last answer is not fresh or
// was an error, and waits for a member that has missed a check. It returns an UNAVAILABLE
// fault when the member is unreachable: within some 10 seconds of its last
// answer, and within checkTimeout after that.
func (p *Pool[M]) Pick(ctx context.Context) (M, error) { return p.pick(ctx, fresh) }

// Current returns the member that calls go to which are only passed on. It goes by
// the checks of Run, and asks by itself only after an error.
func (p *Pool[M]) Current(ctx context.Context) (M, error) { return p.pick(ctx, math.MaxInt64) }

func (p *Pool[M]) pick(ctx context.Context, oldest time.Duration) (M, error) {
	var none M
	status := p.Statuses()[0]
	if status.Err == nil && !status.Checked.IsZero() && time.Since(status.Checked) <= oldest {
		return p.member, nil
	}
	for {
		err := p.check(ctx)
		if err == nil {
			return p.member, nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return none, cause
		}
		if p.Statuses()[0].Unreachable() {
			return none, p.unavailable(err)
		}
		select {
		case <-ctx.Done():
			return none, context.Cause(ctx)
		case <-time.After(checkAgain):
		}
	}
}

// Health returns nil unless the member is unreachable; else since when it fails, and an
// UNAVAILABLE fault.
func (p *Pool[M]) Health(string) (time.Time, error) {
	status := p.Statuses()[0]
	if !status.Unreachable() {
		return time.Time{}, nil
	}
	return status.FailingSince, p.unavailable(status.Err)
}

// Statuses returns how the members were when they were last asked, by name.
func (p *Pool[M]) Statuses() []Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return []Status{p.status}
}

// Ready returns nil when a member has answered and is not unreachable: the builder's health
// check. It asks by itself when nobody has asked yet.
func (p *Pool[M]) Ready(ctx context.Context) error {
	status := p.Statuses()[0]
	if status.Checked.IsZero() {
		return p.check(ctx)
	}
	if !status.Answered.IsZero() && !status.Unreachable() {
		return nil
	}
	return status.Err
}

// check asks the member how it is. Callers that come while one asks share its
// answer; one that goes away does not end the asking.
func (p *Pool[M]) check(ctx context.Context) error {
	answer := p.asking.DoChan("", func() (any, error) {
		asked, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
		defer cancel()
		begun := time.Now()
		info, err := p.member.Check(asked)
		if err != nil && asked.Err() != nil {
			err = fmt.Errorf("no answer within %s", checkTimeout)
		}
		p.remember(begun, info, err)
		return nil, err
	})
	select {
	case result := <-answer:
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Pool[M]) remember(begun time.Time, info Info, err error) {
	now := time.Now()
	p.mu.Lock()
	was := p.status
	p.status.Checked, p.status.Err = now, err
	if err == nil {
		p.status.Info, p.status.Answered, p.status.FailingSince, p.status.Missed = info, now, time.Time{}, 0
	} else {
		p.status.Missed++
		if was.Err == nil {
			p.status.FailingSince = begun
		}
	}
	is := p.status
	p.mu.Unlock()

	switch {
	case is.Unreachable() && !was.Unreachable(), err != nil && was.Checked.IsZero():
		p.log.Warn("buildkitd does not answer", "daemon", was.Name, "address", was.Address, "checks", is.Missed, "error", err)
	case err != nil && was.Err == nil:
		p.log.Info("buildkitd has missed a check", "daemon", was.Name, "address", was.Address, "error", err)
	case err == nil && (was.Err != nil || was.Checked.IsZero()):
		p.log.Info("buildkitd is ready", "daemon", was.Name, "address", was.Address, "version", info.Version)
	}
}

func (p *Pool[M]) unavailable(err error) error {
	return fault.Wrap(err, fault.Unavailable, "DAEMON_UNAVAILABLE",
		fmt.Sprintf("buildkitd %q at %s does not answer", p.member.Name(), p.member.Address()),
		"check that buildkitd runs and listens at that address (systemctl status buildkit, or the log of kiln up), and that the builder may open its socket; then call again")
}
