package e2e_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Builds of several clients and a build by RPC have a step in common. The daemon runs it
// once, with the secret of the first, and shows what it writes in all. Only the client that
// gave the secret sees it: it is in nothing that is stored, and in no other's live log.
func TestSecrets_OfAStepThatClientsHaveInCommon(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	given := canarySecret(t)
	text := "FROM " + s.base + "\nRUN --mount=type=secret,id=tok echo begun; sleep 5; echo \"[$(cat /run/secrets/tok)]\"; sleep 1 # " + unique() + "\n"
	client := func(name, secret string) *lab.Process {
		dir := s.dir(t, map[string]string{"Dockerfile": text, "tok": secret})
		return labtest.Must(s.lab.Run(buildctl(t, "tcp://"+s.Builder.Addr, dir, "--secret", "id=tok,src="+filepath.Join(dir, "tok"),
			"--progress", "plain", "--output", "type=image,name="+s.ref(name))))(t)
	}
	first := client("shared-first", given)
	id := s.gatewayBuild(t, s.ref("shared-first"), running).GetId()
	s.running(t, id, "begun") // it has asked for the secret
	second := client("shared-second", canarySecret(t))
	spec := dockerfile(text)
	spec.Secrets = []*builderv1.Secret{{Id: "tok", Value: []byte(canarySecret(t))}}
	byRPC := s.start(t, spec, "").GetId()

	for name, p := range map[string]*lab.Process{"first": first, "second": second} {
		labtest.Eventually(t, time.Minute, "the "+name+" client ends", func() bool { return p.ExitCode() == 0 })
	}
	if out := first.Output(); !strings.Contains(out, "["+given+"]") {
		t.Errorf("the client that gave the secret does not see what its step wrote:\n%s", out)
	}
	if out := second.Output(); strings.Contains(out, given) || !strings.Contains(out, "[***]") {
		t.Errorf("the other client sees:\n%s", out)
	}
	stored := []string{id, s.gatewayBuild(t, s.ref("shared-second"), builderv1.BuildState_BUILD_STATE_SUCCEEDED).GetId(), byRPC}
	for _, id := range stored {
		r := s.ended(t, id, builderv1.BuildState_BUILD_STATE_SUCCEEDED)
		if log := r.log(); strings.Contains(log, given) || !strings.Contains(log, "[***]") {
			t.Errorf("the stored log of %s is %q", id, log)
		}
	}
	if found := filesWith(t, s.Builder.State, given); len(found) != 0 {
		t.Errorf("the builder has the secret in %v", found)
	}
}
