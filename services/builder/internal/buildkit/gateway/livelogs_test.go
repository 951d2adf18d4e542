package gateway

import (
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/protocodec"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// secretive begins a build with a secret that has a step.
func secretive(s *mask.Steps, secret, step string) *mask.View {
	set := buildSecrets(secret)
	v := s.Begin(set)
	v.Saw(step)
	return v
}

func buildSecrets(secret string) *mask.Set {
	set := mask.NewSet(0)
	if secret != "" {
		set.Add([]byte(secret))
	}
	return set
}

// pass passes a status through, and returns what the client sees of its logs.
func pass(t *testing.T, live *liveLogs, res *controlapi.StatusResponse) (shown string, same bool) {
	t.Helper()
	sent, err := encoded(res)
	if err != nil {
		t.Fatal(err)
	}
	before := string(sent.Data.Materialize())
	got, err := live.frame(rawcodec.FrameOf([]byte(before)))
	if err != nil {
		t.Fatal(err)
	}
	raw := got.Data.Materialize()
	var seen controlapi.StatusResponse
	if err := protocodec.Unmarshal(raw, &seen); err != nil {
		t.Fatal(err)
	}
	for _, log := range seen.GetLogs() {
		shown += string(log.GetMsg())
	}
	return shown, before == string(raw)
}

func wrote(step, text string) *controlapi.StatusResponse {
	return &controlapi.StatusResponse{Logs: []*controlapi.VertexLog{{Vertex: step, Stream: 1, Msg: []byte(text), Timestamp: timestamppb.Now()}}}
}

// A client sees no secret of another build in the log of a step that both have, wherever
// the log is cut; it sees its own secrets, and what it writes in other steps.
func TestLiveLogs_HideOthersSecretsInSharedSteps(t *testing.T) {
	steps := mask.NewSteps()
	own := secretive(steps, "own-secret", "common")
	live := &liveLogs{view: own}
	if shown, same := pass(t, live, wrote("common", "other-secret own-secret")); !same || shown != "other-secret own-secret" {
		t.Errorf("alone: %q, untouched %t", shown, same)
	}
	other := secretive(steps, "other-secret", "common")
	for _, test := range []struct {
		of   *controlapi.StatusResponse
		want string
		same bool
	}{
		{wrote("common", "own-secret, other-secret."), "own-secret, ***.", false},
		{wrote("common", "cut other-"), "cut ", false},
		{wrote("common", "secret off\n"), "*** off\n", false},
		{wrote("mine", "try other-secret\n"), "try other-secret\n", true},
		{wrote("common", "ends with oth"), "ends with ", false},
		{&controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{{Digest: "common", Completed: timestamppb.Now()}}}, "oth", false},
	} {
		if shown, same := pass(t, live, test.of); shown != test.want || same != test.same {
			t.Errorf("%v is shown as %q, untouched %t", test.of, shown, same)
		}
	}
	if _, _ = pass(t, live, wrote("common", "the end: other")); string(live.rest().GetLogs()[0].GetMsg()) != "other" {
		t.Error("what is held back at the end is lost")
	}
	other.End()
	own.End()
}
