package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Watch gives fn the events of a build, from sequence number from on (0: from the
// start), each once and in order, and returns the outcome. When the connection
// breaks, or the builder ends the stream because fn took minutes for an event, it
// comes back at the event after the last one that fn had. fn may be nil; an error of fn ends the watch and is returned as it is.
//
// The error of a build that did not succeed is a *BuildError, beside its
// outcome. With any other error the outcome is nil, and the build goes on.
func (c *Client) Watch(ctx context.Context, id string, from uint64, fn func(*builderv1.BuildEvent) error) (*builderv1.Outcome, error) {
	w := &watch{client: c, id: id, next: max(from, 1), fn: fn}
	err := c.again(ctx, func() (bool, error) {
		before := w.next
		err := w.attempt(ctx)
		return w.next > before, err
	})
	if err != nil {
		return nil, err
	}
	return w.outcome, outcomeError(id, w.outcome)
}

// watch is how far one Watch has come.
type watch struct {
	client  *Client
	id      string
	next    uint64 // sequence number of the event that comes next
	fn      func(*builderv1.BuildEvent) error
	outcome *builderv1.Outcome
}

// attempt reads one stream as far as it goes.
func (w *watch) attempt(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.client.api.WatchBuild(ctx, &builderv1.WatchBuildRequest{BuildId: w.id, FromSequence: w.next})
	if err != nil {
		return err
	}
	for w.outcome == nil {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return w.ended(ctx)
		}
		if err != nil {
			return err
		}
		if err := w.take(res.GetEvent()); err != nil {
			return final{err}
		}
	}
	return nil
}

// take gives an event to the caller, unless it had it.
func (w *watch) take(event *builderv1.BuildEvent) error {
	switch seq := event.GetSequence(); {
	case seq < w.next:
		return nil
	case seq > w.next:
		return fmt.Errorf("build %s: event %d came where %d was to come; please report it", w.id, seq, w.next)
	}
	if w.fn != nil {
		if err := w.fn(event); err != nil {
			return err
		}
	}
	w.next++
	w.outcome = event.GetOutcome()
	return nil
}

// ended is asked when a stream ended without an outcome: that is as it should be
// for a caller who had the last event already.
func (w *watch) ended(ctx context.Context) error {
	res, err := w.client.api.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: w.id})
	if err != nil {
		return err
	}
	if res.GetBuild().GetOutcome() == nil || res.GetBuild().GetLastSequence() >= w.next {
		return errCut
	}
	w.outcome = res.GetBuild().GetOutcome()
	return nil
}
