package buildkit

import (
	"errors"
	"testing"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/policy"
)

// tenant is what the rules of the tests allow: a project with a repository of its own.
func tenant(t *testing.T) auth.Grant {
	t.Helper()
	rules := auth.FromRules([]*configv1.AccessRule{{
		Identities: []string{"ci"}, Methods: []string{"*"}, Projects: []string{"web"}, Registries: []string{"registry.example/web/*", "plain.example/web/*"},
		Entitlements: []string{"none"}, Frontends: []string{"docker/dockerfile:*"},
	}}, false)
	grant, err := rules(t.Context(), "/m", auth.Identity{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	return grant
}

// Policy and rules judge what is asked for, whichever entrance and form it comes in.
func TestAsked_IsHeldToPolicyAndRules(t *testing.T) {
	type attrs = map[string]string
	push := func(name string) []Entry { return []Entry{{Type: "image", Attrs: attrs{"name": name, "push": "true"}}} }
	insecurely := func(name, value string) []Entry {
		return []Entry{{Type: "image", Attrs: attrs{"name": name, "push": "true", "registry.insecure": value}}}
	}
	granted := policy.New(&configv1.BuildPolicyConfig{
		Entitlements: []string{"network.host"}, Frontends: []string{"docker/dockerfile:*", "evil/f:*"}, InsecureRegistries: []string{"plain.example"},
	})
	for name, test := range map[string]struct {
		asked  Asked
		reason string // empty: allowed
	}{
		"nothing beside a build":        {Asked{Frontend: "dockerfile.v0"}, ""},
		"a push of its own":             {Asked{Exports: push("registry.example/web/app:1")}, ""},
		"a push of another's":           {Asked{Exports: push("registry.example/payroll:1")}, "DENIED"},
		"one push of two":               {Asked{Exports: push("registry.example/web/app:1,registry.example/payroll:1")}, "DENIED"},
		"a cache of another's":          {Asked{CacheExports: []Entry{{"registry", attrs{"ref": "registry.example/payroll:c"}}}}, "DENIED"},
		"exporters that cannot be seen": {Asked{Hidden: true}, "POLICY_DENIED"},
		"an insecure push":              {Asked{Exports: insecurely("registry.example/web/app:1", "true")}, "POLICY_DENIED"},
		"an insecure push, in short":    {Asked{Exports: insecurely("registry.example/web/app:1", "")}, "POLICY_DENIED"},
		"an insecure push of two":       {Asked{Exports: insecurely("plain.example/web/app:1,registry.example/web/app:1", "1")}, "POLICY_DENIED"},
		"an insecure push, granted":     {Asked{Exports: insecurely("plain.example/web/app:1", "1")}, ""},
		"an insecure push that is none": {Asked{Exports: insecurely("registry.example/web/app:1", "false")}, ""},
		"an insecure push by frontend":  {Asked{Exports: insecurely("*", "true")}, "POLICY_DENIED"},
		"an insecure cache":             {Asked{CacheExports: []Entry{{"registry", attrs{"ref": "registry.example/web/c", "registry.insecure": "true"}}}}, "POLICY_DENIED"},
		"an insecure cache to read":     {Asked{CacheImports: []Entry{{"registry", attrs{"ref": "registry.example/web/c", "registry.insecure": "t"}}}}, "POLICY_DENIED"},
		"an insecure cache in attributes": {Asked{Attrs: attrs{
			"cache-imports": `[{"Type":"registry","Attrs":{"ref":"10.0.0.1/c","registry.insecure":"true"}}]`,
		}}, "POLICY_DENIED"},
		"another project":                   {Asked{Project: "payroll"}, "DENIED"},
		"a right that only the policy has":  {Asked{Entitlements: []string{"network.host"}}, "DENIED"},
		"a right that nobody has":           {Asked{Entitlements: []string{"security.insecure"}}, "POLICY_DENIED"},
		"a device by its parameters":        {Asked{Entitlements: []string{"device=vendor.example/gpu"}}, "POLICY_DENIED"},
		"a frontend":                        {Asked{Frontend: "gateway.v0", Attrs: attrs{"source": "docker/dockerfile:1"}}, ""},
		"a frontend of the policy alone":    {Asked{Frontend: "gateway.v0", Attrs: attrs{"source": "evil/f:1"}}, "DENIED"},
		"a frontend by argument":            {Asked{Frontend: "dockerfile.v0", Attrs: attrs{"build-arg:BUILDKIT_SYNTAX": "docker/dockerfile:1 extra"}}, ""},
		"a foreign frontend by argument":    {Asked{Frontend: "dockerfile.v0", Attrs: attrs{"build-arg:BUILDKIT_SYNTAX": "other/f:1"}}, "POLICY_DENIED"},
		"a frontend of rules by argument":   {Asked{Attrs: attrs{"build-arg:BUILDKIT_SYNTAX": "evil/f:1"}}, "DENIED"},
		"a context in place of a frontend":  {Asked{Frontend: "gateway.v0", Attrs: attrs{"source": "docker/dockerfile:1", "context:docker.io/docker/dockerfile:1": "docker-image://evil/f"}}, "INVALID_FIELD"},
		"the same for one platform":         {Asked{Frontend: "gateway.v0", Attrs: attrs{"source": "docker/dockerfile:1", "context:docker/dockerfile:1::linux/amd64": "docker-image://evil/f"}}, "INVALID_FIELD"},
		"a generator":                       {Asked{Attrs: attrs{"attest:sbom": "generator=evil/scan"}}, "POLICY_DENIED"},
		"an object store":                   {Asked{CacheExports: []Entry{{"s3", attrs{"bucket": "b", "region": "r"}}}}, "POLICY_DENIED"},
		"an object store to read":           {Asked{CacheImports: []Entry{{"azblob", attrs{"account_url": "http://169.254.169.254/"}}}}, "POLICY_DENIED"},
		"an object store in the attributes": {Asked{Attrs: attrs{"cache-imports": `[{"Type":"s3","Attrs":{"endpoint_url":"http://10.0.0.1/"}}]`}}, "POLICY_DENIED"},
		"imports without number":            {Asked{CacheImports: make([]Entry, 257)}, "INVALID_FIELD"},
		"exporters without number":          {Asked{Exports: make([]Entry, 257)}, "INVALID_FIELD"},
		"imports that cannot be read":       {Asked{Attrs: attrs{"cache-imports": `{`}}, "INVALID_FIELD"},
	} {
		t.Run(name, func(t *testing.T) {
			if test.asked.Project == "" {
				test.asked.Project = "web"
			}
			err := test.asked.Check(auth.WithGrant(t.Context(), tenant(t)), granted)
			own, _ := errors.AsType[*fault.Error](err)
			if (err == nil) != (test.reason == "") || own != nil && own.Reason != test.reason {
				t.Errorf("%v, want %q", err, test.reason)
			}
		})
	}
}

func TestFrontend_UnknownOnesAreTheDaemonsToRefuse(t *testing.T) {
	all := policy.New(&configv1.BuildPolicyConfig{Frontends: []string{"*"}})
	if err := (Asked{Frontend: "unknown.v0"}).Allowed(all); err != nil {
		t.Errorf("with all frontends granted: %v", err)
	}
	if err := (Asked{Frontend: "unknown.v0"}).Allowed(policy.New(nil)); fault.KindOf(err) != fault.PermissionDenied {
		t.Errorf("with none granted: %v", err)
	}
}
