package buildkit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/kilnbuild/kiln/pkg/cachelease"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/outcome"
)

// letGo is how long a cancelled solve may take to end in the daemon before its
// build is given its end all the same; BuildKit's client itself waits five
// seconds for the last status of a daemon that hangs.
const letGo = 2 * time.Second

// Accept implements build.Daemon.
func (d *Daemon) Accept(ctx context.Context, spec build.Spec) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, acceptTimeout)
	defer cancel()
	j, err := d.prepareWithin(ctx, "", spec)
	if err != nil {
		return nil, err
	}
	release = Hold(d.opts.Contexts, spec) // before its contexts are closed
	if err := errors.Join(j.authorize(ctx), j.close()); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// Hold pins the uploaded contexts of a spec until release is called. One that is gone
// is not pinned: the build fails when it wants it.
func Hold(contexts Contexts, spec build.Spec) (release func()) {
	var pins []func()
	for _, c := range spec.Contexts() {
		if c.Uploaded == nil {
			continue
		}
		if unpin, err := contexts.Pin(spec.Project, c.Uploaded.Digest); err == nil {
			pins = append(pins, unpin)
		}
	}
	return func() {
		for _, unpin := range pins {
			unpin()
		}
	}
}

// Solve implements build.Daemon.
func (d *Daemon) Solve(ctx context.Context, id string, attempt int, spec build.Spec, sink func(any)) build.Result {
	r := &run{daemon: d, hide: hiderOf(spec, d.opts.Steps), progress: outcome.NewProgress(), sink: sink}
	defer r.hide.End()
	started := time.Now()
	ref := refOf(id, attempt)
	outputs, err := r.solve(ctx, id, ref, spec)
	for try := 1; cachelease.IsCollision(err) && try < collisionTries && ctx.Err() == nil; try++ {
		select { // so that it is not the same moment again
		case <-time.After(time.Duration(rand.IntN(50)) * time.Millisecond):
		case <-ctx.Done():
		}
		outputs, err = r.solve(ctx, id, fmt.Sprintf("%s-again-%d", ref, try), spec)
	}
	r.progress.Update(r.hide.Rest(), sink)
	result := build.Result{Outputs: outputs, Steps: r.progress.Counts(), Graph: r.progress.Graph(), Times: r.progress.Times(started)}
	if err == nil {
		d.noteScope(spec.Cache)
	}
	if err != nil {
		result.Outputs, result.Failure = nil, r.hide.Failure(outcome.FailureOf(ctx, err, r.progress))
	}
	return result
}

// noteScope notes the default scope that a build wrote.
func (d *Daemon) noteScope(cache build.Cache) {
	if d.opts.CacheWritten == nil || cache.Scope == "" || len(cache.Exports) == 0 {
		return
	}
	repository := strings.TrimSuffix(cache.Exports[0].Attributes["ref"], ":"+cache.Scope)
	d.opts.CacheWritten(repository, cache.Scope)
}

// run is a solve on its way: where its statuses go.
type run struct {
	daemon   *Daemon
	hide     *Hider
	progress *outcome.Progress
	sink     func(any)
}

func (r *run) update(status *client.SolveStatus) { r.progress.Update(r.hide.Status(status), r.sink) }

// collisionTries is how often a solve is tried that collides with another which writes its
// cache to the same directory.
const collisionTries = 10

func (r *run) solve(ctx context.Context, id, ref string, spec build.Spec) ([]build.OutputResult, error) {
	spec, err := r.fetch(ctx, spec)
	if err != nil {
		return nil, err
	}
	j, err := r.daemon.prepareWithin(ctx, id, spec)
	if err != nil {
		return nil, err
	}
	if err := j.authorize(ctx); err != nil { // rules may have changed since the build was accepted
		return nil, errors.Join(err, j.close())
	}
	j.opt.Ref = ref
	j.lease(ctx)
	j.leaseRegistry(ctx)
	type answer struct {
		outputs []build.OutputResult
		err     error
	}
	statuses := make(chan *client.SolveStatus, 64)
	done, giveUp := make(chan answer, 1), make(chan struct{})
	ended, err := r.daemon.toForget(ctx, ref, spec)
	if err != nil {
		return nil, errors.Join(err, j.close())
	}
	go func() {
		var outputs []build.OutputResult
		err := lifecycle.Protect(ctx, func(ctx context.Context) (err error) {
			outputs, err = j.run(ctx, statuses, giveUp)
			return err
		})
		ended(err)
		done <- answer{outputs, err}
	}()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(letGo, func() { close(giveUp) }) })
	defer stop()
	for open := true; open; {
		select {
		case status, ok := <-statuses:
			if open = ok; ok {
				r.update(status)
			}
		case <-giveUp:
			go drain(statuses)
			return nil, ctx.Err()
		}
	}
	select {
	case end := <-done:
		return end.outputs, end.err
	case <-giveUp:
		return nil, ctx.Err()
	}
}

// drain reads what nobody waits for any more: BuildKit's client does not end
// while its channel is full. The client closes it within its own bounds.
func drain(statuses <-chan *client.SolveStatus) {
	for range statuses {
		continue
	}
}
