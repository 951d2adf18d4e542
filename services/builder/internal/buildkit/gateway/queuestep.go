package gateway

import (
	"fmt"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// queueStep shows, as a step of a build in BuildKit's terms, that the build waits for
// its slot.
type queueStep struct {
	ref     string
	started *timestamppb.Timestamp
	name    string
}

func newQueueStep(ref string) *queueStep { return &queueStep{ref: ref, started: timestamppb.Now()} }

// waiting tells the place of the build. A terminal shows the name of the step, which
// changes; plain progress prints a name once, and then what a step logs.
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
