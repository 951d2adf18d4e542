package auth_test

import (
	"testing"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

func TestFromRules(t *testing.T) {
	const build, prune = "/kiln.builder.v1.BuilderService/Build", "/kiln.cachemanager.v1.CacheManagerService/Prune"
	rule := func(identity, method string) *configv1.AccessRule {
		return &configv1.AccessRule{Identities: []string{"nobody", identity}, Methods: []string{"/none", method}}
	}
	for name, test := range map[string]struct {
		rules   []*configv1.AccessRule
		open    bool
		method  string
		caller  string
		allowed bool
		kind    fault.Kind
	}{
		"no rules, open":              {open: true, method: build, allowed: true},
		"no rules, closed":            {method: build, caller: "ci", kind: fault.PermissionDenied},
		"no rules, closed, anonymous": {method: build, kind: fault.Unauthenticated},
		"exact":                       {rules: []*configv1.AccessRule{rule("ci", build)}, method: build, caller: "ci", allowed: true},
		"rules close what was open":   {rules: []*configv1.AccessRule{rule("ci", build)}, open: true, method: build, caller: "dev", kind: fault.PermissionDenied},
		"other method":                {rules: []*configv1.AccessRule{rule("ci", build)}, method: prune, caller: "ci", kind: fault.PermissionDenied},
		"prefix of a name":            {rules: []*configv1.AccessRule{rule("spiffe://a/*", build)}, method: build, caller: "spiffe://a/b", allowed: true},
		"no prefix of a name":         {rules: []*configv1.AccessRule{rule("spiffe://a/*", build)}, method: build, caller: "spiffe://ab", kind: fault.PermissionDenied},
		"a name is not a prefix":      {rules: []*configv1.AccessRule{rule("ci", build)}, method: build, caller: "ci2", kind: fault.PermissionDenied},
		"prefix of a method":          {rules: []*configv1.AccessRule{rule("ci", "/kiln.builder.v1.BuilderService/*")}, method: build, caller: "ci", allowed: true},
		"a method is not a prefix":    {rules: []*configv1.AccessRule{rule("ci", "/kiln.builder.v1.BuilderService/B")}, method: build, caller: "ci", kind: fault.PermissionDenied},
		"star is anybody":             {rules: []*configv1.AccessRule{rule("*", "*")}, method: prune, allowed: true},
		"a prefix is not anonymous":   {rules: []*configv1.AccessRule{rule("spiffe://*", "*")}, method: prune, kind: fault.Unauthenticated},
		"an empty name is nobody":     {rules: []*configv1.AccessRule{rule("", "*")}, method: prune, kind: fault.Unauthenticated},
		"star inside is a star": {
			rules: []*configv1.AccessRule{rule("spiffe://*/ci", "*")}, method: prune, caller: "spiffe://a/ci", kind: fault.PermissionDenied,
		},
		"second rule": {rules: []*configv1.AccessRule{rule("a", build), rule("b", prune)}, method: prune, caller: "b", allowed: true},
		"not a mix of two rules": {
			rules: []*configv1.AccessRule{rule("a", build), rule("b", prune)}, method: prune, caller: "a", kind: fault.PermissionDenied,
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := auth.FromRules(test.rules, test.open)(t.Context(), test.method, auth.Identity{Name: test.caller})
			if (err == nil) != test.allowed {
				t.Fatalf("error %v, allowed should be %v", err, test.allowed)
			}
			if err != nil && fault.KindOf(err) != test.kind {
				t.Errorf("kind %s, want %s", fault.KindOf(err), test.kind)
			}
		})
	}
}

func TestIdentityInContext(t *testing.T) {
	if id := auth.FromContext(t.Context()); !id.Anonymous() || id.String() != "anonymous" {
		t.Errorf("identity of a bare context: %v", id)
	}
	if id := auth.FromPeer(t.Context()); !id.Anonymous() {
		t.Errorf("identity without a peer: %v", id)
	}
	if id := auth.FromContext(auth.NewContext(t.Context(), auth.Identity{Name: "ci"})); id.String() != "ci" {
		t.Errorf("identity: %v", id)
	}
}
