package buildkit

import (
	"encoding/base64"
	"encoding/json"
	"strconv"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
)

// Hider keeps the secrets of a build out of all that its solve tells, and those of other
// builds out of what the steps write that they have in common. It is of one goroutine.
type Hider struct {
	view *mask.View
	set  *mask.Set // of the build itself
	logs *mask.Logs
}

// NewHider returns a hider for a build at a daemon, also of secrets that AddSecret adds to
// its own later. End it.
func NewHider(view *mask.View) *Hider {
	return &Hider{view: view, set: view.Own(), logs: mask.NewLogs(view.Masker)}
}

// End ends the build's view: it is told no more.
func (h *Hider) End() { h.view.End() }

// maxMasker bounds the memory for the secrets of one client, in bytes: enough for a
// value of 500 KB, the longest that BuildKit passes to a step, and 30 KB of others.
const maxMasker = 24 << 20

// NewSecrets returns a set for the secrets that a client gives to the daemon.
func NewSecrets() *mask.Set { return mask.NewSet(maxMasker) }

// AddSecret adds a secret to a set, and the form in which errors quote it.
func AddSecret(set *mask.Set, value []byte) { set.Add(value, quoted(value)) }

func quoted(value []byte) []byte {
	text := strconv.Quote(string(value))
	return []byte(text[1 : len(text)-1])
}

// hiderOf returns the hider of a build by RPC, among the builds of steps.
func hiderOf(spec build.Spec, steps *mask.Steps) *Hider {
	set, values := new(mask.Set), spec.Sensitive()
	for _, value := range values {
		values = append(values, quoted(value))
	}
	set.Add(values...)
	return NewHider(steps.Begin(set))
}

// Hides reports whether the build has secrets, as far as is known.
func (h *Hider) Hides() bool { return h.set.Masker() != nil || h.set.Full() }

// withheld stands for what cannot be masked.
const withheld = "[withheld: the build has more secrets than can be masked]"

// Status hides what is secret in a status, before anything else sees it. What a
// step wrote may come later than it was written: its end may begin a secret.
func (h *Hider) Status(s *client.SolveStatus) *client.SolveStatus {
	for _, v := range s.Vertexes {
		h.view.Saw(v.Digest.String())
	}
	logs := make([]*client.VertexLog, 0, len(s.Logs))
	for _, l := range s.Logs {
		if l.Data = h.logs.Write(l.Vertex.String(), l.Stream, l.Data); len(l.Data) > 0 {
			logs = append(logs, l)
		}
	}
	for _, v := range s.Vertexes {
		if v.Completed != nil {
			logs = append(logs, held(h.logs.End(v.Digest.String()))...)
		}
	}
	s.Logs = logs
	if !h.Hides() {
		return s
	}
	for _, v := range s.Vertexes {
		v.Name, v.Error = h.text(v.Name), h.text(v.Error)
	}
	for _, status := range s.Statuses {
		status.ID, status.Name = h.text(status.ID), h.text(status.Name)
	}
	for _, w := range s.Warnings {
		w.Short = []byte(h.text(string(w.Short)))
		for i, line := range w.Detail {
			w.Detail[i] = []byte(h.text(string(line)))
		}
	}
	return s
}

// held are the statuses of what was held back.
func held(rests []mask.Rest) []*client.VertexLog {
	var logs []*client.VertexLog
	for _, r := range rests {
		logs = append(logs, &client.VertexLog{Vertex: digest.Digest(r.Step), Stream: r.Number, Data: r.Data})
	}
	return logs
}

// text hides what is secret in a text that is whole.
func (h *Hider) text(text string) string {
	if h.set.Full() {
		return withheld
	}
	return h.set.Masker().Text(text)
}

// Rest is what is still held back at the end of a solve.
func (h *Hider) Rest() *client.SolveStatus {
	return &client.SolveStatus{Logs: held(h.logs.EndAll())}
}

// Failure hides what is secret in a failure. Its step and last lines come from
// statuses that Status has seen.
func (h *Hider) Failure(f *build.Failure) *build.Failure {
	if !h.Hides() {
		return f
	}
	f.Message, f.Reference = h.text(f.Message), h.text(f.Reference)
	if f.Location != nil {
		f.Location.Snippet = h.text(f.Location.Snippet)
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
func (h *Hider) value(value any) any {
	switch v := value.(type) {
	case string:
		if raw, err := base64.StdEncoding.DecodeString(v); err == nil && h.text(string(raw)) != string(raw) {
			return ""
		}
		return h.text(v)
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
