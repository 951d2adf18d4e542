package policy_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/policy"
)

var some = policy.New(&configv1.BuildPolicyConfig{
	Entitlements:   []string{"network.host"},
	Frontends:      []string{"docker/dockerfile:*", "registry.example/f/*", "registry.example/exact"},
	SbomGenerators: []string{"registry.example/scan:1"},
	SbomGenerator:  "registry.example/default:2",
})

// source is the attributes of a gateway frontend.
func source(image string) map[string]string { return map[string]string{"source": image} }

func TestGranted(t *testing.T) {
	for name, err := range map[string]error{
		"an entitlement":            some.Entitlements([]string{"network.host"}),
		"no entitlement":            (*policy.Policy)(nil).Entitlements(nil),
		"no frontend named":         (*policy.Policy)(nil).Frontend("", nil),
		"the daemon's own frontend": (*policy.Policy)(nil).Frontend("dockerfile.v0", nil),
		"a release, of no policy":   (*policy.Policy)(nil).Frontend("gateway.v0", source("docker/dockerfile:1-labs")),
		"a release by its digest":   (*policy.Policy)(nil).Frontend("gateway.v0", source("docker/dockerfile@sha256:"+strings.Repeat("a", 64))),
		"a frontend":                some.Frontend("gateway.v0", source("docker/dockerfile:1.9")),
		"in full":                   some.Frontend("gateway.v0", source("docker.io/docker/dockerfile:1.9")),
		"below a prefix":            some.Frontend("gateway.v0", source("registry.example/f/a:1")),
		"the tag left out":          some.Frontend("gateway.v0", source("registry.example/exact:latest")),
		"a generator":               some.SBOMGenerator("registry.example/scan:1"),
		"the default generator":     some.SBOMGenerator("registry.example/default:2"),
		"no generator named":        some.SBOMGenerator(""),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDenied(t *testing.T) {
	for name, tc := range map[string]struct {
		err error
		key string
	}{
		"an entitlement":        {some.Entitlements([]string{"network.host", "security.insecure"}), "policy.entitlements"},
		"by a policy of none":   {(*policy.Policy)(nil).Entitlements([]string{"device"}), "policy.entitlements"},
		"a frontend":            {some.Frontend("gateway.v0", source("docker/other:1")), "policy.frontends"},
		"by another digest":     {some.Frontend("gateway.v0", source("registry.example/exact@sha256:"+strings.Repeat("a", 64))), "policy.frontends"},
		"a nightly build":       {some.Frontend("gateway.v0", source("docker/dockerfile-upstream:master")), "policy.frontends"},
		"of another registry":   {some.Frontend("gateway.v0", source("evil.example/docker/dockerfile:1")), "policy.frontends"},
		"another tag":           {some.Frontend("gateway.v0", source("registry.example/exact:other")), "policy.frontends"},
		"no image":              {some.Frontend("gateway.v0", nil), "policy.frontends"},
		"the built-in as image": {some.Frontend("gateway.v0", source("dockerfile.v0")), "policy.frontends"},
		"an unknown frontend":   {some.Frontend("other.v0", source("docker/dockerfile:1")), "policy.frontends"},
		"a generator":           {some.SBOMGenerator("registry.example/scan:2"), "policy.sbom_generators"},
		"no policy, generator":  {(*policy.Policy)(nil).SBOMGenerator("a"), "policy.sbom_generators"},
	} {
		var denied *fault.Error
		if !errors.As(tc.err, &denied) || denied.Kind != fault.PermissionDenied || denied.Reason != "POLICY_DENIED" {
			t.Errorf("%s: %v", name, tc.err)
			continue
		}
		if !strings.Contains(denied.Remedy, tc.key) {
			t.Errorf("%s: the remedy %q does not name %s", name, denied.Remedy, tc.key)
		}
	}
}

func TestOfficial(t *testing.T) {
	for image, want := range map[string]bool{
		"docker/dockerfile:1": true, "docker.io/docker/dockerfile": true, "docker/dockerfile:1-labs": false,
		"docker/dockerfile-upstream:master": false, "evil.example/docker/dockerfile:1": false, "": false,
	} {
		if got := policy.Official(image); got != want {
			t.Errorf("%q: %t", image, got)
		}
	}
}
