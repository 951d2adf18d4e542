package buildkit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// lockRef is the id of the job that the cache manager of a daemon holds in it.
const lockRef = "kiln-cache-run"

const (
	// jobLinger is how long BuildKit remembers the id of a job that has ended: 10 s
	// (solver/jobs.go, Discard), from the moment in which it has noticed the end.
	jobLinger = 15 * time.Second
	// letGoWithin bounds the end of the job, which a daemon that hangs does not tell.
	letGoWithin = 3 * time.Second
)

// lock is the lock of a daemon, as far as this process has it.
type lock struct {
	mu    sync.Mutex          // held while the lock is acquired, which may take as long as the daemon takes
	job   *job                // nil: not held
	since time.Time           // when this process began, or let go of a job
	begun atomic.Pointer[job] // the job that was begun last, which abandon ends while mu is held
}

// job is a job in the daemon that does nothing.
type job struct {
	life    context.Context //nolint:containedctx // ends when the job does
	end     context.CancelCauseFunc
	release chan struct{}
	ended   chan struct{} // how, is the cause of the end of its life
}

// Lock makes this process the only one that runs on the daemon, of all cache managers
// on all hosts, until it ends or the daemon goes away. The lock is in the daemon
// itself: a job of a fixed id that builds nothing, for BuildKit has no two jobs of one
// id, and ends a job whose client is gone. A daemon that another cache manager has is
// an ALREADY_EXISTS fault.
//
// Within a process, the caller sees to it that there is one run at a time. The context
// that is returned ends when the lock is lost.
func (d *Daemon) Lock(ctx context.Context) (context.Context, error) {
	d.lock.mu.Lock()
	defer d.lock.mu.Unlock()
	if d.lock.job == nil || d.lock.job.life.Err() != nil {
		if err := d.acquire(ctx); err != nil {
			return nil, err
		}
	}
	return d.lock.job.life, nil
}

// letGo ends the job, if there is one.
func (d *Daemon) letGo() {
	j := d.lock.job
	if j == nil {
		return
	}
	close(j.release)
	late := time.AfterFunc(letGoWithin, func() { j.end(context.DeadlineExceeded) })
	<-j.ended
	late.Stop()
	d.lock.job, d.lock.since = nil, time.Now()
}

// abandon ends the job of a daemon that takes no new calls, also one that is only being
// begun: the daemon stops, and would wait for the end of the calls that it has.
func (d *Daemon) abandon() {
	if j := d.lock.begun.Load(); j != nil {
		j.end(errReleased)
	}
}

// acquire begins the job. A job that this process, or one that it follows, has had a
// moment ago is waited for.
func (d *Daemon) acquire(ctx context.Context) error {
	d.letGo()
	for {
		j, err := d.begin(ctx)
		if err == nil {
			d.lock.job = j
			return nil
		}
		wait := time.Until(d.lock.since.Add(jobLinger))
		if fault.KindOf(err) != fault.AlreadyExists || wait <= 0 {
			return err
		}
		select {
		case <-time.After(min(wait, time.Second)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// errReleased ends the life of a job that was let go.
var errReleased = errors.New("the lock was let go")

func has(inputs map[string]llb.State, name string) bool {
	_, ok := inputs[name]
	return ok
}

func (d *Daemon) begin(ctx context.Context) (*job, error) {
	// The job outlives the run that began it.
	life, end := context.WithCancelCause(context.WithoutCancel(unsampled(ctx)))
	j := &job{life: life, end: end, release: make(chan struct{}), ended: make(chan struct{})}
	d.lock.begun.Store(j)
	locked := make(chan struct{})
	go func() {
		err := d.hold(j, locked)
		if err == nil {
			err = errReleased
		}
		end(err)
		close(j.ended)
	}()
	select {
	case <-locked:
		return j, nil
	case <-ctx.Done():
		end(context.Cause(ctx))
		<-j.ended
		return nil, context.Cause(ctx)
	case <-j.ended:
		err := context.Cause(life)
		if strings.Contains(err.Error(), "job ID "+lockRef+" exists") {
			return nil, fault.New(fault.AlreadyExists, "ALREADY_EXISTS",
				fmt.Sprintf("another cache manager keeps daemon %q", d.name), "ask that one; this one takes over within seconds of its end")
		}
		return nil, d.explain(ctx, err, "take the lock of a run")
	}
}

// hold is the job's life. It closes locked when the job is there.
func (d *Daemon) hold(j *job, locked chan<- struct{}) error {
	// BuildKit finds the job of a client by its id alone, and so would show the job of
	// another cache manager. The name of an input tells whose it is.
	owner := uuid.NewString()
	_, err := d.client.Build(j.life, client.SolveOpt{
		Ref: lockRef, Internal: true, FrontendInputs: map[string]llb.State{owner: llb.Image("scratch")},
	}, "kiln", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		if inputs, err := c.Inputs(ctx); err == nil && len(inputs) == 1 && has(inputs, owner) {
			close(locked)
			select {
			case <-j.release:
				return gateway.NewResult(), nil
			case <-ctx.Done():
			}
		}
		<-ctx.Done() // to return would end the job, which may be the other's
		return nil, context.Cause(ctx)
	}, nil)
	return err
}
