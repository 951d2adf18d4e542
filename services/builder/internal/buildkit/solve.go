package buildkit

import (
	"context"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// letGo is how long a cancelled solve may take to end in the daemon before its
// build is given its end all the same; BuildKit's client itself waits five
// seconds for the last status of a daemon that hangs.
const letGo = 2 * time.Second

// Accept implements build.Daemon.
func (d *Daemon) Accept(_ context.Context, spec build.Spec) error {
	j, err := d.prepare("", spec)
	if err != nil {
		return err
	}
	return j.close()
}

// Solve implements build.Daemon.
func (d *Daemon) Solve(ctx context.Context, id string, spec build.Spec, sink func(any)) build.Result {
	r := &run{daemon: d, hide: newHider(spec), progress: NewProgress(), sink: sink}
	started := time.Now()
	outputs, err := r.solve(ctx, id, spec)
	r.progress.Update(r.hide.rest(), sink)
	result := build.Result{Outputs: outputs, Steps: r.progress.Counts(), Times: r.progress.Times(started)}
	if err != nil {
		result.Outputs, result.Failure = nil, r.hide.failure(FailureOf(err, r.progress))
	}
	return result
}

// run is a solve on its way: where its statuses go.
type run struct {
	daemon   *Daemon
	hide     *hider
	progress *Progress
	sink     func(any)
}

func (r *run) update(status *client.SolveStatus) { r.progress.Update(r.hide.status(status), r.sink) }

func (r *run) solve(ctx context.Context, id string, spec build.Spec) ([]build.OutputResult, error) {
	spec, err := r.fetch(ctx, spec)
	if err != nil {
		return nil, err
	}
	j, err := r.daemon.prepare(id, spec)
	if err != nil {
		return nil, err
	}
	type answer struct {
		outputs []build.OutputResult
		err     error
	}
	statuses := make(chan *client.SolveStatus, 64)
	done, giveUp := make(chan answer, 1), make(chan struct{})
	go func() {
		outputs, err := j.run(ctx, statuses, giveUp)
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
