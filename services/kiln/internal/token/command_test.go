package token

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/telemetry"
)

func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := Command()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetArgs(args)
	err := cmd.Execute()
	return strings.TrimSpace(out.String()), err
}

// Tokens that are made are known by the file, which has nothing of them but hashes; what else
// is in it stays.
func TestNew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens.yaml")
	first, err1 := run(t, "new", "ci", "--file", file)
	second, err2 := run(t, "new", "spiffe://example.org/x", "--days", "0", "--file", file)
	if err1 != nil || err2 != nil || first == second || !strings.HasPrefix(first, "kiln_") {
		t.Fatalf("%q %v, %q %v", first, err1, second, err2)
	}
	text, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(text), first) || !strings.HasPrefix(string(text), "#") {
		t.Errorf("%s, %v", text, err)
	}
	tokens, err := auth.NewTokens(file, telemetry.Discard().Logger)
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{first: "ci", second: "spiffe://example.org/x"} {
		if id, err := tokens.Identify(token); err != nil || id.Name != want {
			t.Errorf("%v, %v", id, err)
		}
	}
	if err := os.WriteFile(file, []byte("tokens: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, "new", "ci", "--file", file); err == nil {
		t.Error("a line was added where it makes no YAML")
	}
	if kept, err := os.ReadFile(file); err != nil || string(kept) != "tokens: []\n" {
		t.Errorf("the file was changed: %s, %v", kept, err)
	}
	if _, err := run(t, "new", "ci", "--days", "-1"); err == nil {
		t.Error("a token that has ended was made")
	}
}
