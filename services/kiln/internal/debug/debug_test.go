package debug

import (
	"strings"
	"testing"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

func TestTooOld(t *testing.T) {
	for version, old := range map[string]bool{"v0.34.2": false, "v0.15.0": false, "v0.14.9": true, "0.9.1": true, "v1.0.0": false, "v0.34.0-rc1": false, "": false, "master": false} {
		if tooOld(version) != old {
			t.Errorf("%q: too old should be %v", version, old)
		}
	}
}

// What may hold a secret is left out, line by line, and keys as a whole.
func TestRedact(t *testing.T) {
	text := `kept: yes
password_file: /etc/x
Authorization: Bearer abc
url: https://joe:pass@example.org/x
-----BEGIN EC PRIVATE KEY-----
MHcCAQEE
-----END EC PRIVATE KEY-----
kiln_abcdefghijklmnopqrstuvwxyz0123
also kept
-----BEGIN PRIVATE KEY-----
cut off`
	got := string(redact([]byte(text)))
	for _, secret := range []string{"/etc/x", "abc", "joe", "MHcC", "cut off", "kiln_a"} {
		if strings.Contains(got, secret) {
			t.Errorf("%q is left in %s", secret, got)
		}
	}
	if !strings.Contains(got, "kept: yes\n") || !strings.Contains(got, "also kept\n") {
		t.Errorf("too much was left out: %s", got)
	}
}

// The first step that ran is the one nearest to the top of the Dockerfile, FROM left out.
func TestFirstThatRan(t *testing.T) {
	done, cached := builderv1.StepState_STEP_STATE_DONE, builderv1.StepState_STEP_STATE_CACHED
	steps := []step{
		{name: "[internal] load build context", state: done}, {name: "[1/4] FROM base", state: done}, {name: "[4/4] RUN c", state: done},
		{name: "[2/4] RUN a", state: cached}, {name: "[3/4] COPY b /", state: done},
	}
	if got := firstThatRan(steps); got == nil || got.name != "[3/4] COPY b /" {
		t.Errorf("%+v", got)
	}
	if got := firstThatRan(steps[:2]); got != nil {
		t.Errorf("%+v", got)
	}
}

func TestCacheUse_NamesTheBuildOrProjectWithoutASuccess(t *testing.T) {
	for want, o := range map[string]options{"kiln builds show 4f3c": {build: "4f3c"}, "project web has no build": {project: "web"}, "no build yet": {}} {
		if got := o.noBuild(); !strings.Contains(got, want) {
			t.Errorf("%q; want %q", got, want)
		}
	}
}
