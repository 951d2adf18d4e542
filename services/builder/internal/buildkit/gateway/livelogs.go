package gateway

import (
	"bytes"
	"errors"
	"io"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/protocodec"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// liveLogs keeps the secrets of other builds out of the status that a client gets of its
// own: what a step writes that the daemon runs for both. The client's own secrets are
// left, as buildkitd leaves them. While no other build has a secret, messages pass as the
// bytes that they are.
type liveLogs struct {
	view *mask.View // nil: the build runs no steps
	logs *mask.Logs // nil: nothing was masked yet
}

// sendStatus is sendDown for the status of a build under way.
func sendStatus(up grpc.ClientStream, down grpc.ServerStream, view *mask.View) error {
	live := &liveLogs{view: view}
	header, err := up.Header()
	if err == nil && header != nil {
		err = down.SendHeader(header)
	}
	for err == nil {
		var f rawcodec.Frame
		if err = up.RecvMsg(&f); err != nil {
			break
		}
		var masked *rawcodec.Frame
		if masked, err = live.frame(&f); err == nil {
			err = down.SendMsg(masked)
		}
	}
	down.SetTrailer(up.Trailer())
	if !errors.Is(err, io.EOF) {
		return err
	}
	if rest := live.rest(); rest != nil {
		return down.SendMsg(rest)
	}
	return nil
}

// frame returns a message of the status as the client may see it.
func (l *liveLogs) frame(f *rawcodec.Frame) (*rawcodec.Frame, error) {
	if l.view == nil || l.logs == nil && l.view.Alone() {
		return f, nil
	}
	raw := f.Data.Materialize()
	f.Data.Free()
	var res controlapi.StatusResponse
	if err := protocodec.Unmarshal(raw, &res); err != nil {
		return nil, err
	}
	if !l.mask(&res) {
		return rawcodec.FrameOf(raw), nil
	}
	return encoded(&res)
}

// mask masks the logs in a status, and reports whether it changed any.
func (l *liveLogs) mask(res *controlapi.StatusResponse) (changed bool) {
	if l.logs == nil {
		l.logs = mask.NewLogs(l.view.Others)
	}
	logs := res.Logs[:0]
	for _, log := range res.Logs {
		shown := l.logs.Write(log.GetVertex(), int(log.GetStream()), log.GetMsg())
		changed = changed || !bytes.Equal(shown, log.GetMsg())
		if log.Msg = shown; len(shown) > 0 {
			logs = append(logs, log)
		}
	}
	for _, v := range res.Vertexes {
		if v.GetCompleted() != nil {
			logs = append(logs, heldBack(l.logs.End(v.GetDigest()))...)
		}
	}
	changed = changed || len(logs) != len(res.Logs)
	res.Logs = logs
	return changed
}

// rest is what is held back at the end of the status; nil when that is nothing.
func (l *liveLogs) rest() *controlapi.StatusResponse {
	if l.logs == nil {
		return nil
	}
	if logs := heldBack(l.logs.EndAll()); len(logs) > 0 {
		return &controlapi.StatusResponse{Logs: logs}
	}
	return nil
}

// heldBack are the logs of what was held back.
func heldBack(rests []mask.Rest) []*controlapi.VertexLog {
	var logs []*controlapi.VertexLog
	for _, r := range rests {
		logs = append(logs, &controlapi.VertexLog{
			Vertex: r.Step, Stream: int64(r.Number), Msg: r.Data, Timestamp: timestamppb.Now(),
		})
	}
	return logs
}
