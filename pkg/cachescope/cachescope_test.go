package cachescope_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/pkg/cachescope"
)

var tag = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

func TestName_IsReadableAndTellsBuildsApart(t *testing.T) {
	amd, arm := []string{"linux/amd64"}, []string{"linux/arm64"}
	seen := map[string]int{}
	for i, c := range []struct {
		build cachescope.Build
		want  string // how the name begins
	}{
		{cachescope.Build{}, "native"},
		{cachescope.Build{Platforms: amd}, "linux-amd64"},
		{cachescope.Build{Platforms: arm}, "linux-arm64"},
		{cachescope.Build{Platforms: []string{"linux/arm/v7"}}, "linux-arm-v7"},
		{cachescope.Build{Platforms: []string{"linux/amd64", "linux/arm64"}}, "linux-amd64_linux-arm64"},
		{cachescope.Build{Platforms: amd, Target: "test"}, "linux-amd64.test."},
		{cachescope.Build{Platforms: amd, Image: "test"}, "linux-amd64.test."},
		{cachescope.Build{Platforms: amd, Image: "a/web"}, "linux-amd64.a-web."},
		{cachescope.Build{Platforms: amd, Image: "b/web"}, "linux-amd64.b-web."},
		{cachescope.Build{Platforms: amd, Image: "a-web"}, "linux-amd64.a-web."},
		{cachescope.Build{Platforms: amd, Dockerfile: "docker/Dockerfile.dev"}, "linux-amd64.docker-Dockerfile-dev."},
		{cachescope.Build{Platforms: amd, Subdir: "services/web"}, "linux-amd64.services-web."},
		{cachescope.Build{Platforms: amd, Target: strings.Repeat("é/", 500)}, "linux-amd64."},
		{cachescope.Build{Platforms: amd, Target: strings.Repeat("x", 500)}, "linux-amd64.xxx"},
		{cachescope.Build{Platforms: amd, Target: strings.Repeat("x", 501)}, "linux-amd64.xxx"},
		{cachescope.Build{Platforms: make([]string, 300)}, "_"},
	} {
		name := c.build.Name()
		if !tag.MatchString(name) || !strings.HasPrefix(name, c.want) {
			t.Errorf("%d: %q is no tag, or does not begin with %q", i, name, c.want)
		}
		if !strings.HasSuffix(c.want, ".") && len(c.want) < 30 && c.build.Target == "" && len(c.build.Platforms) < 3 && name != c.want {
			t.Errorf("%d: %q, want %q", i, name, c.want)
		}
		if before, taken := seen[name]; taken {
			t.Errorf("builds %d and %d are both %q", before, i, name)
		}
		seen[name] = i
	}
}
