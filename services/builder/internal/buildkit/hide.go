package buildkit

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
)

// hider keeps the secrets of a build out of all that its solve tells.
type hider struct {
	mask    *mask.Masker // nil: there is nothing to hide
	streams map[stream]*mask.Stream
}

// stream is one of the streams of a step.
type stream struct {
	step   digest.Digest
	number int
}

func newHider(spec build.Spec) *hider {
	values := spec.Sensitive()
	for _, value := range values {
		// As errors quote what they are about.
		quoted := strconv.Quote(string(value))
		values = append(values, []byte(quoted[1:len(quoted)-1]))
	}
	return &hider{mask: mask.New(values), streams: make(map[stream]*mask.Stream)}
}

// hides reports whether the build has secrets.
func (h *hider) hides() bool { return h.mask != nil }

// status hides what is secret in a status, before anything else sees it. What a
// step wrote may come later than it was written: its end may begin a secret.
func (h *hider) status(s *client.SolveStatus) *client.SolveStatus {
	if h.mask == nil {
		return s
	}
	logs := make([]*client.VertexLog, 0, len(s.Logs))
	for _, l := range s.Logs {
		key := stream{l.Vertex, l.Stream}
		if h.streams[key] == nil {
			h.streams[key] = h.mask.Stream()
		}
		l.Data = h.streams[key].Write(l.Data)
		if len(l.Data) > 0 {
			logs = append(logs, l)
		}
	}
	for _, v := range s.Vertexes {
		v.Name, v.Error = h.mask.Text(v.Name), h.mask.Text(v.Error)
		if v.Completed != nil {
			logs = append(logs, h.flush(func(key stream) bool { return key.step == v.Digest })...)
		}
	}
	for _, status := range s.Statuses {
		status.ID, status.Name = h.mask.Text(status.ID), h.mask.Text(status.Name)
	}
	for _, w := range s.Warnings {
		w.Short = []byte(h.mask.Text(string(w.Short)))
		for i, line := range w.Detail {
			w.Detail[i] = []byte(h.mask.Text(string(line)))
		}
	}
	s.Logs = logs
	return s
}

// rest is what is still held back at the end of a solve.
func (h *hider) rest() *client.SolveStatus {
	return &client.SolveStatus{Logs: h.flush(func(stream) bool { return true })}
}

// flush ends the streams that are meant, and returns what was held back of them.
func (h *hider) flush(which func(stream) bool) []*client.VertexLog {
	var logs []*client.VertexLog
	for key, held := range h.streams {
		if !which(key) {
			continue
		}
		delete(h.streams, key)
		if data := held.Flush(); len(data) > 0 {
			logs = append(logs, &client.VertexLog{Vertex: key.step, Stream: key.number, Data: data})
		}
	}
	slices.SortFunc(logs, func(a, b *client.VertexLog) int {
		return strings.Compare(a.Vertex.String(), b.Vertex.String())*2 + a.Stream - b.Stream
	})
	return logs
}

// failure hides what is secret in a failure. Its step and last lines come from
// statuses that hide has seen.
func (h *hider) failure(f *build.Failure) *build.Failure {
	if h.mask == nil {
		return f
	}
	f.Message, f.Reference = h.mask.Text(f.Message), h.mask.Text(f.Reference)
	if f.Location != nil {
		f.Location.Snippet = h.mask.Text(f.Location.Snippet)
	}
	kept := f.Details[:0]
	for _, detail := range f.Details {
		// JSON writes some characters otherwise, so that its strings are looked at and
		// not its text.
		var value any
		if json.Unmarshal(detail.Value, &value) != nil {
			continue
		}
		encoded, err := json.Marshal(h.value(value))
		if err == nil {
			kept = append(kept, build.Detail{TypeURL: detail.TypeURL, Value: encoded})
		}
	}
	f.Details = kept
	return f
}

// value hides what is secret in the strings of a JSON value. Bytes stand there in
// base64.
func (h *hider) value(value any) any {
	switch v := value.(type) {
	case string:
		if raw, err := base64.StdEncoding.DecodeString(v); err == nil && h.mask.Text(string(raw)) != string(raw) {
			return ""
		}
		return h.mask.Text(v)
	case []any:
		for i := range v {
			v[i] = h.value(v[i])
		}
	case map[string]any:
		for key := range v {
			v[key] = h.value(v[key])
		}
	}
	return value
}
