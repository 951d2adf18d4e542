package outcome

import (
	"fmt"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

func at(seconds int) *time.Time {
	t := time.Unix(1_000_000+int64(seconds), 0).UTC()
	return &t
}

// BuildKit sends a vertex again with each change, and again when builds share it;
// each state of a step must be told once.
func TestProgressTellsEachStateOnce(t *testing.T) {
	run, cached := digest.FromString("run"), digest.FromString("cached")
	p := NewProgress()
	var got []string
	sink := func(kind any) {
		if e, ok := kind.(build.StepEvent); ok {
			got = append(got, fmt.Sprintf("%s %d", e.Name, e.State))
		}
	}
	for _, v := range []*client.Vertex{
		{Digest: run, Name: "RUN"},
		{Digest: run, Name: "RUN", Started: at(1)},
		{Digest: run, Name: "RUN", Started: at(1)},
		{Digest: cached, Name: "COPY", Started: at(2), Completed: at(2), Cached: true},
		{Digest: cached, Name: "COPY", Started: at(2), Completed: at(2), Cached: true},
		{Digest: run, Name: "RUN", Started: at(1), Completed: at(3)},
		{Digest: run, Name: "RUN", Started: at(1), Completed: at(3)},
	} {
		p.Update(&client.SolveStatus{Vertexes: []*client.Vertex{v}}, sink)
	}
	want := fmt.Sprintf("[RUN %d COPY %d RUN %d]", build.StepStarted, build.StepCached, build.StepDone)
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestProgressCountsAndTimes(t *testing.T) {
	p := NewProgress()
	vertex := func(name string, start, end int, change func(*client.Vertex)) {
		v := &client.Vertex{Digest: digest.FromString(name), Name: name, Started: at(start), Completed: at(end)}
		if change != nil {
			change(v)
		}
		p.Update(&client.SolveStatus{Vertexes: []*client.Vertex{v}}, func(any) {})
	}
	cached := func(v *client.Vertex) { v.Cached = true }
	vertex("[internal] load build definition from Dockerfile", 0, 1, nil)
	vertex("[internal] load build context", 1, 3, nil)
	vertex("[1/3] FROM localhost:5000/base", 1, 1, cached)
	vertex("[2/3] COPY . .", 3, 3, cached)
	vertex("[3/3] RUN make", 3, 7, nil)
	vertex("[4/3] RUN false", 7, 8, func(v *client.Vertex) { v.Error = "exit code: 1" })
	vertex("[other 1/1] FROM localhost:5000/new", 1, 2, nil)
	vertex("[same 1/1] FROM localhost:5000/old", 1, 2, nil)
	p.Update(&client.SolveStatus{Statuses: []*client.VertexStatus{
		{Vertex: digest.FromString("[other 1/1] FROM localhost:5000/new"), ID: "sha256:abc"},
		{Vertex: digest.FromString("[same 1/1] FROM localhost:5000/old"), ID: "resolve localhost:5000/old"},
	}}, func(any) {})
	vertex("exporting to image", 8, 10, nil)
	vertex("exporting cache to registry", 9, 12, nil)

	if got, want := p.Counts(), (build.StepCounts{Total: 6, Cached: 3, Completed: 2, Failed: 1}); got != want {
		t.Errorf("counts = %+v, want %+v", got, want)
	}
	times := p.Times(time.Now().Add(-20 * time.Second))
	if times.Context != 2*time.Second || times.Export != 4*time.Second || times.Solve.Round(time.Second) != 16*time.Second {
		t.Errorf("times = %+v", times)
	}
}

func TestWarningLines(t *testing.T) {
	got := warning(&client.VertexWarning{
		Short: []byte("Old syntax"), Detail: [][]byte{[]byte("more")},
		SourceInfo: &pb.SourceInfo{Filename: "Dockerfile"},
		Range: []*pb.Range{
			{Start: &pb.Position{Line: 7}, End: &pb.Position{Line: 9}}, {Start: &pb.Position{Line: 3}, End: &pb.Position{Line: 3}}, {},
		},
	})
	if got.StartLine != 3 || got.EndLine != 9 || got.File != "Dockerfile" || got.Details[0] != "more" {
		t.Errorf("warning = %+v", got)
	}
}
