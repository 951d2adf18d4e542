package plan_test

import (
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// Manifests whose signature tags name one another, or themselves, age like any other.
func TestMake_SignatureTagsThatNameOneAnotherAge(t *testing.T) {
	a, b, c := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64), "sha256:"+strings.Repeat("c", 64)
	sig := func(of, on string) inventory.Tag {
		return inventory.Tag{Name: strings.Replace(of, ":", "-", 1) + ".sig", Digest: content.Digest(on)}
	}
	p := plan.Make(plan.Input{
		Registry: inventory.Registry{Repositories: []inventory.Repository{
			repo("app", []inventory.Tag{sig(a, b), sig(b, a), sig(c, c)}, man(a, 30), man(b, 30), man(c, 30)),
		}},
		Policy: policy.Policy{Rules: []policy.Rule{{Name: "r", Keep: &policy.Keep{Age: ptr(7 * day)}}}}, Now: now,
	})
	if p.Removes.Manifests != 3 {
		t.Error(said(p))
	}
}
