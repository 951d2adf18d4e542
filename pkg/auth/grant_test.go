package auth_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

func TestGrant(t *testing.T) {
	const build = "/kiln.builder.v1.BuilderService/Build"
	rule := func(identity string, change func(*configv1.AccessRule)) *configv1.AccessRule {
		r := &configv1.AccessRule{Identities: []string{identity}, Methods: []string{build}}
		change(r)
		return r
	}
	rules := auth.FromRules([]*configv1.AccessRule{
		rule("ci", func(r *configv1.AccessRule) {
			r.Projects, r.Registries = []string{"web", "team-*"}, []string{"registry.example.org/web/*", "localhost:5000/cache/web"}
			r.Entitlements, r.Frontends = []string{"none"}, []string{"docker.io/docker/dockerfile:*"}
		}),
		rule("ci", func(r *configv1.AccessRule) { r.Projects, r.Entitlements = []string{"infra"}, []string{"network.host"} }),
		rule("all", func(*configv1.AccessRule) {}),
		rule("puller", func(r *configv1.AccessRule) {
			r.Registries, r.Pulls = []string{"registry.example.org/web/*"}, []string{"registry.example.org/base/*"}
		}),
		rule("admin", func(r *configv1.AccessRule) { r.Projects, r.DaemonAdmin = []string{"ops"}, true }),
	}, false)
	for name, test := range map[string]struct {
		caller string
		use    auth.Use
		ok     bool
	}{
		"all that a rule allows":          {"ci", auth.Use{Project: "web", Registries: []string{"registry.example.org/web/app", "localhost:5000/cache/web"}, Frontend: "docker.io/docker/dockerfile:1"}, true},
		"by a pattern":                    {"ci", auth.Use{Project: "team-a"}, true},
		"another project":                 {"ci", auth.Use{Project: "payroll"}, false},
		"not a prefix":                    {"ci", auth.Use{Project: "web2"}, false},
		"one repository of two":           {"ci", auth.Use{Project: "web", Registries: []string{"registry.example.org/web/app", "registry.example.org/other"}}, false},
		"no right":                        {"ci", auth.Use{Project: "web", Entitlements: []string{"network.host"}}, false},
		"another frontend":                {"ci", auth.Use{Project: "web", Frontend: "evil.example.org/f"}, false},
		"by the second rule":              {"ci", auth.Use{Project: "infra", Entitlements: []string{"network.host"}, Registries: []string{"anywhere/at/all"}}, true},
		"not a mix of two":                {"ci", auth.Use{Project: "web", Entitlements: []string{"network.host"}, Registries: []string{"anywhere/at/all"}}, false},
		"a rule without bounds":           {"all", auth.Use{Project: "x", Entitlements: []string{"security.insecure"}, Registries: []string{"y"}, Pulls: []string{"y"}, Frontend: "z"}, true},
		"no administrator by omission":    {"all", auth.Use{DaemonAdmin: true}, false},
		"an administrator":                {"admin", auth.Use{DaemonAdmin: true}, true},
		"an administrator's own projects": {"admin", auth.Use{Project: "web", DaemonAdmin: true}, false},
		"a user lent where it may push":   {"ci", auth.Use{Project: "web", Pulls: []string{"registry.example.org/web/app"}}, true},
		"no user lent elsewhere":          {"ci", auth.Use{Project: "web", Pulls: []string{"registry.example.org/payroll"}}, false},
		"a user lent for pulls":           {"puller", auth.Use{Pulls: []string{"registry.example.org/base/go"}}, true},
		"pulls replace registries":        {"puller", auth.Use{Pulls: []string{"registry.example.org/web/app"}}, false},
		"pulls give no push":              {"puller", auth.Use{Registries: []string{"registry.example.org/base/go"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			grant, err := rules(t.Context(), build, auth.Identity{Name: test.caller})
			if err != nil {
				t.Fatal(err)
			}
			err = auth.GrantOf(auth.WithGrant(t.Context(), grant)).Check(test.use)
			if (err == nil) != test.ok || err != nil && fault.KindOf(err) != fault.PermissionDenied {
				t.Errorf("%v, allowed should be %v", err, test.ok)
			}
		})
	}
	if err := auth.GrantOf(t.Context()).Check(auth.Use{Project: "any", DaemonAdmin: true}); err != nil {
		t.Errorf("without a grant: %v", err)
	}
}

func TestGrantFingerprint_TellsRulesApart(t *testing.T) {
	of := func(rules ...*configv1.AccessRule) string {
		grant, err := auth.FromRules(rules, true)(t.Context(), "/m", auth.Identity{Name: "ci"})
		if err != nil {
			t.Fatal(err)
		}
		return string(grant.Fingerprint())
	}
	rule := func(pulls ...string) *configv1.AccessRule {
		return &configv1.AccessRule{Identities: []string{"ci"}, Methods: []string{"/m"}, Pulls: pulls}
	}
	if of() != "" {
		t.Error("a grant without rules has a fingerprint")
	}
	if first, again := of(rule("a")), of(rule("a")); first != again {
		t.Error("the same rules have other fingerprints")
	}
	if of(rule("a")) == of(rule("b")) || of(rule("a"), rule("b")) == of(rule("a")) {
		t.Error("fingerprints do not follow the rules")
	}
}

func TestTokens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens.yaml")
	line := func(identity, token, more string) string {
		return fmt.Sprintf("  - {identity: %s, sha256: %x%s}\n", identity, sha256.Sum256([]byte(token)), more)
	}
	text := "tokens:\n" + line("ci", "good", "") + line("old", "ended", ", expire_time: "+time.Now().Add(-time.Second).UTC().Format(time.RFC3339)) +
		line("later", "lasts", ", expire_time: "+time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := auth.NewTokens(file, telemetry.Discard().Logger)
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{"good": "ci", "lasts": "later", "ended": "", "": "", "Good": ""} {
		id, err := tokens.Identify(token)
		if id.Name != want || (err == nil) != (want != "") || err != nil && fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("%q is of %q: %v", token, id.Name, err)
		}
	}
	for header, want := range map[string]string{"Bearer abc": "abc", "bearer  abc ": "abc", "Basic abc": "", "abc": ""} {
		if got := auth.Bearer([]string{header}); got != want {
			t.Errorf("%q holds %q", header, got)
		}
	}
	if _, err := auth.NewTokens(filepath.Join(t.TempDir(), "none"), telemetry.Discard().Logger); err == nil {
		t.Error("a file that is not there was read")
	}
}
