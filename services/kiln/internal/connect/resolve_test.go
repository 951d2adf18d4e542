package connect

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/services/kiln/internal/profile"
)

// isolate gives a test profiles of its own.
func isolate(t *testing.T) {
	t.Helper()
	root := t.TempDir()
	t.Setenv("KILN_RUN_DIR", filepath.Join(root, "run"))
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(root, "config"))
	for _, name := range []string{"KILN_PROFILE", "KILN_BUILDER", "KILN_TOKEN_FILE", "KILN_TLS_CA", "KILN_TLS_CERT", "KILN_TLS_KEY", "SUDO_UID"} {
		t.Setenv(name, "")
	}
}

// up publishes the profile of a stack that requires a token.
func up(t *testing.T, name, builder string) *profile.Profile {
	t.Helper()
	p := &profile.Profile{
		Name: name, DataDir: t.TempDir(), Process: profile.Self(),
		Builder:      profile.Service{Address: builder, TokenFile: "/data/" + name + "/token"},
		CacheManager: profile.Service{Address: builder + "1", TokenFile: "/data/" + name + "/token"},
	}
	if err := p.Publish(); err != nil {
		t.Fatal(err)
	}
	return p
}

// A command that a message tells has the flags by which the service was reached, and not what the profile
// filled in.
func TestArgs_AreThoseThatWereGiven(t *testing.T) {
	isolate(t)
	up(t, "kiln", "127.0.0.1:9000")
	for want, args := range map[string][]string{
		"":                          nil,
		" --builder 127.0.0.1:9000": {"--builder", "127.0.0.1:9000"},
		" --builder h:1 --tls-ca '/a b/ca.crt' --insecure": {"--builder", "h:1", "--tls-ca", "/a b/ca.crt", "--insecure"},
	} {
		if got := resolved(t, args...).Args(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func resolved(t *testing.T, args ...string) *Flags {
	t.Helper()
	f := parse(t, args...)
	if err := f.Resolve(); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestResolve_TakesAddressAndTokenOfTheRunningStack(t *testing.T) {
	isolate(t)
	if f := resolved(t); f.Address != "127.0.0.1:50051" || f.Token != "" {
		t.Errorf("nothing runs: %+v", f)
	}
	up(t, "a", "127.0.0.1:7000")
	f := resolved(t)
	if f.Address != "127.0.0.1:7000" || f.Token != "/data/a/token" {
		t.Errorf("%+v", f)
	}
	manager := f.For(CacheManager, "")
	if err := manager.Resolve(); err != nil || manager.Address != "127.0.0.1:70001" || manager.Token != "/data/a/token" {
		t.Errorf("cache manager: %+v, %v", manager, err)
	}
}

func TestResolve_NeverSendsATokenToAnotherAddress(t *testing.T) {
	isolate(t)
	up(t, "a", "127.0.0.1:7000")
	if f := resolved(t, "--builder", "build.example.org:1"); f.Token != "" {
		t.Errorf("the token of the stack would go to another builder: %+v", f)
	}
	if f := resolved(t, "--builder", "build.example.org:1", "--profile", "a"); f.Token != "" {
		t.Errorf("the same with --profile: %+v", f)
	}
	if f := resolved(t, "--builder", "127.0.0.1:7000"); f.Token != "/data/a/token" {
		t.Errorf("the stack's own address: %+v", f)
	}
	if f := resolved(t, "--token-file", "/mine"); f.Token != "/mine" || f.Address != "127.0.0.1:7000" {
		t.Errorf("a given token: %+v", f)
	}
}

func TestResolve_FindsThePartsOfTheStackThatAnAddressBelongsTo(t *testing.T) {
	isolate(t)
	up(t, "a", "127.0.0.1:7000")
	up(t, "b", "127.0.0.1:8000")
	if err := parse(t).Resolve(); err == nil {
		t.Error("two stacks run, and one was chosen")
	}
	f := resolved(t, "--builder", "127.0.0.1:8000")
	manager := f.For(CacheManager, "")
	if err := manager.Resolve(); err != nil || manager.Address != "127.0.0.1:80001" || manager.Token != "/data/b/token" {
		t.Errorf("%+v, %v", manager, err)
	}
	t.Setenv("KILN_PROFILE", "a")
	if f := resolved(t); f.Address != "127.0.0.1:7000" {
		t.Errorf("KILN_PROFILE: %+v", f)
	}
}

func TestResolve_SaysWhichAddressAProfileLacks(t *testing.T) {
	isolate(t)
	path := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(path, []byte("builder: {address: a:1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &Flags{To: Janitor, Profile: path}
	if err := f.Resolve(); err == nil {
		t.Errorf("%+v", f)
	}
}
