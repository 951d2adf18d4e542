package cachescope_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/pkg/cachescope"
)

func TestDefault_TellsPlatformsTargetsAndImagesApart(t *testing.T) {
	seen := map[string]cachescope.Build{}
	for _, b := range []cachescope.Build{
		{Project: "web", Image: "web"},
		{Project: "web", Image: "a/web"},
		{Project: "web", Image: "b/web"},
		{Project: "web", Platforms: []string{"linux/amd64"}},
		{Project: "web", Platforms: []string{"linux/arm64"}},
		{Project: "web", Platforms: []string{"linux/amd64", "linux/arm64"}},
		{Project: "web", Target: "web"},
		{Project: "web", Target: "test"},
		{Project: "web", Target: "test", Platforms: []string{"linux/arm64"}},
		{Project: "web", Target: "linux-arm64"},
		{Project: "web", Image: "test"},
	} {
		scope := b.Default()
		if other, taken := seen[scope]; taken {
			t.Errorf("%+v and %+v share the scope %s", b, other, scope)
		}
		seen[scope] = b
	}
	if got := (cachescope.Build{Project: "web", Image: "web"}).Default(); got != cachescope.Shared {
		t.Errorf("the plain build writes to %s", got)
	}
}

func TestDefault_IgnoresTheOrderOfPlatforms(t *testing.T) {
	one := cachescope.Build{Platforms: []string{"linux/amd64", "linux/arm64"}}
	two := cachescope.Build{Platforms: []string{"linux/arm64", "linux/amd64", "linux/amd64"}}
	if one.Default() != two.Default() {
		t.Errorf("%s, %s", one.Default(), two.Default())
	}
}

func TestImports_ReadsTheOwnScopeFirstAndTheSharedOneLast(t *testing.T) {
	tagSyntax := regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	rapid.Check(t, func(t *rapid.T) {
		b := cachescope.Build{
			Image: rapid.String().Draw(t, "image"), Project: "web", Target: rapid.String().Draw(t, "target"),
			Platforms: rapid.SliceOf(rapid.String()).Draw(t, "platforms"),
		}
		all := b.Imports()
		if all[0] != b.Default() || all[len(all)-1] != cachescope.Shared || len(slices.Compact(slices.Sorted(slices.Values(all)))) != len(all) {
			t.Fatalf("%q", all)
		}
		for _, scope := range all {
			if !tagSyntax.MatchString(scope) || strings.Contains(scope, "/") {
				t.Fatalf("%q is no tag", scope)
			}
		}
	})
}
