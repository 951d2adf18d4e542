package gateway

import (
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"

	"github.com/kilnbuild/kiln/pkg/auth"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// What a caller may read under one rule is not remembered for another: that of another
// method, or of a policy that has changed.
func TestBlobs_AreRememberedForTheRulesOfTheirCall(t *testing.T) {
	under := func(projects ...string) *call {
		rules := []*configv1.AccessRule{{Identities: []string{"ann"}, Methods: []string{methodRead}, Projects: projects}}
		grant, err := auth.FromRules(rules, false)(t.Context(), methodRead, auth.Identity{Name: "ann"})
		if err != nil {
			t.Fatal(err)
		}
		return &call{ServerStream: one{ctx: auth.WithGrant(t.Context(), grant)}, owner: owner{identity: "ann"}}
	}
	known := newBlobs()
	known.add(under("web", "payroll").holder(), &controlapi.BuildHistoryRecord{Logs: &controlapi.Descriptor{Digest: "sha256:1"}})
	if own, _ := known.has(under("web", "payroll").holder(), "sha256:1"); !own {
		t.Error("it is forgotten")
	}
	if own, _ := known.has(under("web").holder(), "sha256:1"); own {
		t.Error("it is the caller's under a rule without the project")
	}
}
