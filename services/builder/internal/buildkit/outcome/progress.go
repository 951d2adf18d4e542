package outcome

import (
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// FetchStep is how the name of a step begins by which the builder fetches an archive.
const FetchStep = "[internal] fetch "

// Progress tells the events of a solve from BuildKit's statuses, and keeps what
// its outcome needs.
type Progress struct {
	steps map[digest.Digest]*step
}

type step struct {
	name       string
	begun      bool
	ended      build.StepState // 0: it has not
	pulled     bool            // it moved layers, rather than only resolving a name
	start, end time.Time
	tail       tail
}

// NewProgress returns a Progress that has seen nothing.
func NewProgress() *Progress { return &Progress{steps: make(map[digest.Digest]*step)} }

func (p *Progress) step(id digest.Digest) *step {
	s := p.steps[id]
	if s == nil {
		s = &step{}
		p.steps[id] = s
	}
	return s
}

// Update takes one status and gives its events to sink.
func (p *Progress) Update(status *client.SolveStatus, sink func(any)) {
	for _, v := range status.Vertexes {
		if event, changed := p.vertex(v); changed {
			sink(event)
		}
	}
	for _, s := range status.Statuses {
		if !strings.HasPrefix(s.ID, "resolve ") {
			p.step(s.Vertex).pulled = true
		}
		sink(build.StepEvent{
			Digest: s.Vertex.String(), Name: p.step(s.Vertex).name, State: build.StepProgress,
			Start: deref(s.Started), End: deref(s.Completed),
			Current: s.Current, Total: s.Total, ProgressItem: s.ID,
		})
	}
	for _, l := range status.Logs {
		stderr := l.Stream == 2
		p.step(l.Vertex).tail.write(stderr, l.Data)
		sink(build.LogEvent{StepDigest: l.Vertex.String(), Stderr: stderr, Data: l.Data, Clipped: isClipped(l.Data)})
	}
	for _, w := range status.Warnings {
		sink(warning(w))
	}
}

// vertex notes the state of a vertex and reports whether it is news. BuildKit
// sends a vertex again and again, and again from the start when several builds
// share it.
func (p *Progress) vertex(v *client.Vertex) (build.StepEvent, bool) {
	s := p.step(v.Digest)
	s.name = v.Name
	event := build.StepEvent{
		Digest: v.Digest.String(), Name: v.Name, Start: deref(v.Started), End: deref(v.Completed), Error: v.Error,
	}
	switch {
	case v.Error != "":
		event.State = build.StepFailed
	case v.Cached:
		event.State = build.StepCached
	case v.Completed != nil:
		event.State = build.StepDone
	case v.Started != nil && !s.begun:
		event.State = build.StepStarted
	default:
		return event, false
	}
	if v.Started != nil {
		s.start, s.begun = *v.Started, true
	}
	if event.State == build.StepStarted {
		return event, true
	}
	if v.Completed != nil {
		s.end = *v.Completed
	}
	if s.ended >= event.State {
		return event, false
	}
	s.ended = event.State
	return event, true
}

// Counts counts the steps of the Dockerfile's graph. An image of which nothing
// was pulled counts as cached.
func (p *Progress) Counts() build.StepCounts {
	var c build.StepCounts
	for _, s := range p.steps {
		if bookkeeping(s.name) {
			continue
		}
		c.Total++
		switch {
		case s.ended == build.StepCached, s.ended == build.StepDone && isImage(s.name) && !s.pulled:
			// BuildKit resolves an image again and again, and calls that done.
			c.Cached++
		case s.ended == build.StepDone:
			c.Completed++
		case s.ended == build.StepFailed:
			c.Failed++
		}
	}
	return c
}

// Graph is how each step ended, BuildKit's bookkeeping included, in any order.
func (p *Progress) Graph() []build.StepEvent {
	graph := make([]build.StepEvent, 0, len(p.steps))
	for id, s := range p.steps {
		graph = append(graph, build.StepEvent{Digest: id.String(), Name: s.name, State: s.ended, Start: s.start, End: s.end})
	}
	return graph
}

// bookkeeping reports whether a vertex is BuildKit's own work rather than a step
// that a user wrote. BuildKit marks it by name only.
func bookkeeping(name string) bool {
	return name == "" || strings.HasPrefix(name, "[internal]") || strings.HasPrefix(name, "[auth]") ||
		strings.HasPrefix(name, "resolve image config for ") || strings.HasPrefix(name, "docker-image://") ||
		strings.HasPrefix(name, "importing cache manifest from ") || isExport(name)
}

func isImage(name string) bool { return strings.Contains(name, "] FROM ") }

func isExport(name string) bool {
	return strings.HasPrefix(name, "exporting ") || strings.HasPrefix(name, "preparing build cache for export") ||
		strings.HasPrefix(name, "sending tarball") || strings.HasPrefix(name, "pushing ")
}

// Times says how long the phases took that BuildKit knows of, for a solve that
// was sent at started and has just ended.
func (p *Progress) Times(started time.Time) build.PhaseTimes {
	var t build.PhaseTimes
	now := time.Now()
	var exportStart, exportEnd time.Time
	for _, s := range p.steps {
		if s.start.IsZero() {
			continue
		}
		end := s.end
		if end.IsZero() {
			end = now
		}
		switch {
		case s.name == "[internal] load build context", strings.HasPrefix(s.name, "[internal] load git context"), strings.HasPrefix(s.name, FetchStep):
			t.Context = max(t.Context, end.Sub(s.start))
		case isExport(s.name):
			if exportStart.IsZero() || s.start.Before(exportStart) {
				exportStart = s.start
			}
			if end.After(exportEnd) {
				exportEnd = end
			}
		}
	}
	t.Solve = now.Sub(started)
	if !exportStart.IsZero() {
		t.Export = exportEnd.Sub(exportStart)
		// By durations, not by times: the daemon's clock may differ from ours.
		t.Solve = max(0, t.Solve-t.Export)
	}
	return t
}

func warning(w *client.VertexWarning) build.Warning {
	out := build.Warning{Message: string(w.Short), URL: w.URL, StepDigest: w.Vertex.String()}
	for _, line := range w.Detail {
		out.Details = append(out.Details, string(line))
	}
	if w.SourceInfo != nil {
		out.File = w.SourceInfo.Filename
	}
	for i, r := range w.Range {
		if r.GetStart() == nil {
			continue
		}
		if line := int(r.Start.Line); i == 0 || line < out.StartLine {
			out.StartLine = line
		}
		out.EndLine = max(out.EndLine, int(r.GetEnd().GetLine()), int(r.Start.Line))
	}
	return out
}

func deref(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}
