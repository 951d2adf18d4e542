// Package progress shows the events of a build with BuildKit's own display, as
// `docker build` and `kiln build` show a build of theirs.
package progress

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Modes are the values of --progress.
var Modes = []string{"auto", "tty", "plain", "rawjson", "quiet"}

// Display shows a build while its events come.
type Display struct {
	statuses chan *client.SolveStatus
	shown    chan error
	convert  converter
}

// Start starts a display in one of the Modes. It must be closed.
func Start(out io.Writer, mode string) (*Display, error) {
	display, err := progressui.NewDisplay(out, progressui.DisplayMode(mode))
	if err != nil {
		return nil, fmt.Errorf("--progress %s: %w", mode, err)
	}
	d := &Display{statuses: make(chan *client.SolveStatus, 64), shown: make(chan error, 1), convert: converter{known: map[string]bool{}}}
	go func() {
		// Not bound to a context: what is left to show is shown, and Close ends it.
		_, err := display.UpdateFrom(context.Background(), d.statuses)
		d.shown <- err
	}()
	return d, nil
}

// Show shows one event.
func (d *Display) Show(event *builderv1.BuildEvent) {
	if status := d.convert.status(event); status != nil {
		d.statuses <- status
	}
}

// Close shows what is left and ends the display.
func (d *Display) Close() error {
	close(d.statuses)
	return <-d.shown
}

// converter makes BuildKit's statuses of Kiln's events.
type converter struct {
	known   map[string]bool // steps that the display has heard of
	waiting *client.Vertex  // the step that stands for waiting; nil: it does not
	retries int
}

// status is what an event means to the display. Nil: nothing.
func (c *converter) status(event *builderv1.BuildEvent) *client.SolveStatus {
	out := &client.SolveStatus{}
	at := event.GetTime().AsTime()
	if event.GetQueued() == nil && event.GetStarted() == nil {
		c.endWait(out, at)
	}
	switch kind := event.GetKind().(type) {
	case *builderv1.BuildEvent_Step:
		c.step(out, kind.Step, at)
	case *builderv1.BuildEvent_Log:
		c.introduce(out, kind.Log.GetStepDigest(), at)
		out.Logs = append(out.Logs, &client.VertexLog{
			Vertex: digest.Digest(kind.Log.GetStepDigest()), Stream: int(kind.Log.GetStream()), Data: kind.Log.GetData(), Timestamp: at,
		})
	case *builderv1.BuildEvent_Warning:
		out.Warnings = append(out.Warnings, warning(kind.Warning))
	case *builderv1.BuildEvent_Queued:
		c.wait(out, kind.Queued, at)
	case *builderv1.BuildEvent_Retry:
		c.retries++
		note(out, fmt.Sprintf("[kiln] attempt %d, after: %s", kind.Retry.GetAttempt(), kind.Retry.GetError().GetMessage()), c.retries, at)
	}
	if len(out.Vertexes)+len(out.Statuses)+len(out.Logs)+len(out.Warnings) == 0 {
		return nil
	}
	return out
}

func (c *converter) step(out *client.SolveStatus, step *builderv1.StepEvent, at time.Time) {
	id := digest.Digest(step.GetDigest())
	start, end := timeOf(step.GetStartTime()), timeOf(step.GetEndTime())
	if step.GetState() == builderv1.StepState_STEP_STATE_PROGRESS {
		c.introduce(out, step.GetDigest(), at)
		out.Statuses = append(out.Statuses, &client.VertexStatus{
			ID: step.GetItem(), Vertex: id, Current: step.GetCurrentBytes(), Total: step.GetTotalBytes(),
			Timestamp: at, Started: start, Completed: end,
		})
		return
	}
	c.known[step.GetDigest()] = true
	if start == nil { // it never ran, and the display shows only what began
		start = &at
	}
	if end == nil && step.GetState() != builderv1.StepState_STEP_STATE_STARTED {
		end = &at
	}
	out.Vertexes = append(out.Vertexes, &client.Vertex{
		Digest: id, Name: step.GetName(), Started: start, Completed: end,
		Cached: step.GetState() == builderv1.StepState_STEP_STATE_CACHED, Error: step.GetError(),
	})
}

// introduce makes up a step whose beginning was before the first event that is
// watched: the display leaves out what belongs to none.
func (c *converter) introduce(out *client.SolveStatus, id string, at time.Time) {
	if c.known[id] {
		return
	}
	c.known[id] = true
	name := strings.TrimPrefix(id, "sha256:")
	out.Vertexes = append(out.Vertexes, &client.Vertex{Digest: digest.Digest(id), Name: "step " + name[:min(12, len(name))] + ", begun before", Started: &at})
}

// wait shows the build's place in the queue as the output of a step.
func (c *converter) wait(out *client.SolveStatus, queued *builderv1.QueuedEvent, at time.Time) {
	if c.waiting == nil {
		c.waiting = &client.Vertex{Digest: digest.FromString("waiting"), Name: "[kiln] wait for a turn", Started: &at}
		out.Vertexes = append(out.Vertexes, c.waiting)
	}
	out.Logs = append(out.Logs, &client.VertexLog{
		Vertex: c.waiting.Digest, Stream: int(builderv1.LogStream_LOG_STREAM_STDOUT), Timestamp: at,
		Data: fmt.Appendf(nil, "place %d: %s\n", queued.GetPosition(), queued.GetReason()),
	})
}

func (c *converter) endWait(out *client.SolveStatus, at time.Time) {
	if c.waiting == nil {
		return
	}
	ended := *c.waiting
	ended.Completed = &at
	out.Vertexes = append(out.Vertexes, &ended)
	c.waiting = nil
}

// note shows a line as a step that is done.
func note(out *client.SolveStatus, text string, number int, at time.Time) {
	out.Vertexes = append(out.Vertexes, &client.Vertex{
		Digest: digest.FromString(fmt.Sprint("note ", number)), Name: text, Started: &at, Completed: &at,
	})
}

func warning(w *builderv1.WarningEvent) *client.VertexWarning {
	out := &client.VertexWarning{Vertex: digest.Digest(w.GetStepDigest()), Level: 1, Short: []byte(w.GetMessage()), URL: w.GetUrl()}
	for _, line := range w.GetDetails() {
		out.Detail = append(out.Detail, []byte(line))
	}
	if w.GetFile() != "" {
		out.SourceInfo = &pb.SourceInfo{Filename: w.GetFile()}
		out.Range = []*pb.Range{{Start: &pb.Position{Line: w.GetStartLine()}, End: &pb.Position{Line: w.GetEndLine()}}}
	}
	return out
}

func timeOf(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	at := t.AsTime()
	return &at
}
