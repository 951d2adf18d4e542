package buildkit

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/outcome"
)

const canary = "canary\"with\\quotes-0123456789"

func secretive() build.Spec {
	return build.Spec{
		Secrets: []build.Secret{{ID: "s", Value: []byte(canary)}},
		SSHKeys: []build.SSHKey{{ID: "k", PEM: []byte("a-line-of-the-key\nanother-line-of-it\n")}},
	}
}

// Whatever BuildKit puts a secret in, nothing of it is told.
func TestNothingSecretIsTold(t *testing.T) {
	h, progress := hiderOf(secretive(), nil), outcome.NewProgress()
	step, now := digest.FromString("step"), time.Now()
	var told strings.Builder
	wrote := make(map[bool]string) // by whether it is standard error
	sink := func(kind any) {
		if l, ok := kind.(build.LogEvent); ok {
			wrote[l.Stderr] += string(l.Data)
			return
		}
		fmt.Fprintf(&told, "%+v\n", kind)
	}
	log := func(stream int, text string) *client.VertexLog {
		return &client.VertexLog{Vertex: step, Stream: stream, Data: []byte(text)}
	}
	for _, status := range []*client.SolveStatus{
		{Vertexes: []*client.Vertex{{Digest: step, Name: "RUN echo " + canary, Started: &now}}},
		{Logs: []*client.VertexLog{log(1, "out "+canary[:9]), log(2, "err "+canary[:3])}},
		{Logs: []*client.VertexLog{log(1, canary[9:]+" end\n"), log(2, canary[3:])}},
		{Statuses: []*client.VertexStatus{{Vertex: step, ID: "uploading " + canary}}},
		{Warnings: []*client.VertexWarning{{Vertex: step, Short: []byte(canary), Detail: [][]byte{[]byte("see " + canary)}}}},
		{Logs: []*client.VertexLog{log(1, "key a-line-of-the-key, held "+canary[:5])}},
		{Vertexes: []*client.Vertex{{Digest: step, Name: "RUN echo " + canary, Started: &now, Completed: &now, Error: "failed: " + canary}}},
	} {
		progress.Update(h.Status(status), sink)
	}
	progress.Update(h.Rest(), sink)

	f := outcome.FailureOf(t.Context(), fmt.Errorf("process %q failed", canary), progress)
	quoted, _ := json.Marshal(map[string]any{"env": []string{"A=" + canary}, "data": base64.StdEncoding.EncodeToString([]byte("FROM " + canary))})
	f.Location = &build.Location{Snippet: ">>> RUN " + canary}
	f.Details = append(f.Details, build.Detail{TypeURL: "t", Value: quoted}, build.Detail{TypeURL: "u", Value: []byte("no JSON " + canary)})
	f = h.Failure(f)
	fmt.Fprintf(&told, "%+v %+v %s %v\n", f, f.Location, f.Details[0].Value, wrote)

	for _, secret := range []string{canary, canary[9:], "a-line-of-the-key", base64.StdEncoding.EncodeToString([]byte(canary))} {
		if strings.Contains(told.String(), secret) {
			t.Errorf("told:\n%s", told.String())
		}
	}
	for _, want := range []string{"out *** end", "err ***", "key ***", "held canar", "RUN echo ***", "uploading ***"} {
		if !strings.Contains(told.String(), want) {
			t.Errorf("no %q in what was told:\n%s", want, told.String())
		}
	}
	if len(f.Details) != 1 || len(f.LogTail) == 0 {
		t.Errorf("details %v, log tail %q", f.Details, f.LogTail)
	}
}

// A build without secrets pays nothing.
func TestNothingToHide(t *testing.T) {
	h := hiderOf(build.Spec{}, nil)
	status := &client.SolveStatus{Logs: []*client.VertexLog{{Data: []byte("x")}}}
	if got := h.Status(status); got != status || len(h.Rest().Logs) != 0 {
		t.Error("the status was touched")
	}
}
