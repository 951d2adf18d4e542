package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// errHeld ends the daemon's search for a build that it does not get at once.
var errHeld = errors.New("the daemon does not have the build")

// askAgain is how long after its answer that it does not know a build the daemon is
// asked again.
const askAgain = 100 * time.Millisecond

// status passes the Status of a build on. The daemon has it at once when the build
// runs or is in its history; for one that waits for its turn, the daemon is asked
// when the turn has come, and the client sees until then why it waits. Whether a
// build is one that is still to come is known only when its Solve comes. One that
// has come and that the daemon does not know is still on its way there.
func (g *Gateway) status(down grpc.ServerStream, conn *grpc.ClientConn) error {
	var req controlapi.StatusRequest
	if _, err := receive(down, &req); err != nil {
		return err
	}
	raw, err := proto.Marshal(&req)
	if err != nil {
		return err
	}
	s := g.solves.enter(req.GetRef())
	defer g.solves.leave(s)
	client := &oneHeader{ServerStream: down}
	for {
		if s.waiting() {
			if err := showQueue(s, client); err != nil {
				return err
			}
		}
		if s.wasRefused() {
			return nil // its client gets the reason as the answer to its Solve
		}
		err := statusOf(s, conn, client, raw)
		switch {
		case errors.Is(err, errHeld):
		case status.Code(err) != codes.NotFound || s.expected():
			return err
		case s.ended():
			return nil // as it was on its way; its client gets the reason as the answer to its Solve
		default:
			select {
			case <-time.After(askAgain):
			case <-down.Context().Done():
			}
		}
	}
}

// statusOf asks the daemon. It returns errHeld when it turns out, while the daemon
// looks for the build, that it waits for its turn or was refused.
func statusOf(s *solve, conn *grpc.ClientConn, down grpc.ServerStream, request []byte) error {
	ctx, cancel := context.WithCancelCause(outgoing(down.Context()))
	defer cancel(nil)
	if s.held.Err() == nil {
		defer context.AfterFunc(s.held, func() { cancel(errHeld) })()
	}
	up, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, methodStatus, callOptions()...)
	if err != nil {
		return err
	}
	if err := up.SendMsg(rawcodec.FrameOf(request)); err == nil {
		_ = up.CloseSend() // its error is that of the stream, which sendDown gets
	}
	err = sendDown(up, down)
	if cause := context.Cause(ctx); errors.Is(cause, errHeld) {
		return cause
	}
	return err
}

// showQueue shows, as a step of the build, that it waits for its turn, until it no
// longer does.
func showQueue(s *solve, down grpc.ServerStream) error {
	// Like the daemon, which sends its clock first.
	if err := down.SendHeader(metadata.Pairs(timestampKey, time.Now().Format(time.RFC3339Nano))); err != nil {
		return err
	}
	step := queueStep{ref: s.ref, started: timestamppb.Now()}
	for {
		place, changed := s.standing()
		if err := down.SendMsg(step.waiting(place)); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.sent:
			return down.SendMsg(step.done())
		case <-down.Context().Done():
			return context.Cause(down.Context())
		}
	}
}

// timestampKey is the metadata in which BuildKit sends its clock; see
// control/control.go.
const timestampKey = "buildkit-current-timestamp"

// queueStep is the step of a build that it waits for its turn, in BuildKit's terms.
type queueStep struct {
	ref     string
	started *timestamppb.Timestamp
	name    string
}

// waiting tells where the build stands. A terminal shows the name of the step,
// which changes; plain progress prints a name once, and then what a step logs.
func (q *queueStep) waiting(w build.Waiting) *controlapi.StatusResponse {
	first := q.name == ""
	where := fmt.Sprintf("place %d: %s", w.Position, w.Reason)
	q.name = "[internal] waiting for a build slot (" + where + ")"
	res := &controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{q.vertex()}}
	if !first {
		res.Logs = []*controlapi.VertexLog{{Vertex: q.digest(), Stream: 1, Msg: []byte(where + "\n"), Timestamp: timestamppb.Now()}}
	}
	return res
}

func (q *queueStep) done() *controlapi.StatusResponse {
	v := q.vertex()
	v.Completed = timestamppb.Now()
	return &controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{v}}
}

func (q *queueStep) vertex() *controlapi.Vertex {
	return &controlapi.Vertex{Digest: q.digest(), Name: q.name, Started: q.started}
}

func (q *queueStep) digest() string { return digest.FromString("kiln queue " + q.ref).String() }

// oneHeader is a stream whose header is sent once, though several calls to the
// daemon stand behind it.
type oneHeader struct {
	grpc.ServerStream
	sent bool
}

func (s *oneHeader) SendHeader(md metadata.MD) error {
	if s.sent {
		return nil
	}
	s.sent = true
	return s.ServerStream.SendHeader(md)
}
