package auth_test

import (
	"slices"
	"testing"

	"github.com/kilnbuild/kiln/pkg/auth"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

func TestGrant_ProjectsOfAllRules(t *testing.T) {
	rule := func(identity string, projects ...string) *configv1.AccessRule {
		return &configv1.AccessRule{Identities: []string{identity}, Methods: []string{"*"}, Projects: projects}
	}
	rules := auth.FromRules([]*configv1.AccessRule{
		rule("ci", "web", "team-*"), rule("ci", "web", "infra"), rule("all"), rule("mixed", "web"), rule("mixed"),
	}, false)
	for caller, want := range map[string][]string{"ci": {"infra", "team-*", "web"}, "all": nil, "mixed": nil} {
		grant, err := rules(t.Context(), "/any", auth.Identity{Name: caller})
		if err != nil {
			t.Fatal(err)
		}
		if got, bounded := grant.Projects(); bounded != (want != nil) || !slices.Equal(got, want) {
			t.Errorf("%s: %q, bounded %v, want %q", caller, got, bounded, want)
		}
	}
}
