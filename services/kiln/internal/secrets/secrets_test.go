package secrets

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const canary = "canary-0123456789"

func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRead(t *testing.T) {
	path := file(t, "token", canary)
	t.Setenv("KILN_TEST_TOKEN", canary)
	t.Chdir(filepath.Dir(path))
	for flag, id := range map[string]string{
		"id=npm,src=" + path:                        "npm",
		"id=npm,source=" + path + ",type=file":      "npm",
		"type=file,ID=npm,src=" + path:              "npm",
		"id=t,env=KILN_TEST_TOKEN":                  "t",
		"id=t,type=env,src=KILN_TEST_TOKEN":         "t",
		"id=KILN_TEST_TOKEN":                        "KILN_TEST_TOKEN",
		"id=token":                                  "token",
		`"id=a,b",src=token`:                        "a,b",
		"id=t,env=KILN_TEST_TOKEN,src=/nonexistent": "t",
	} {
		got, err := Read([]string{flag})
		if err != nil || len(got) != 1 || got[0].GetId() != id || string(got[0].GetValue()) != canary {
			t.Errorf("%s: %v, %v", flag, got, err)
		}
	}
}

// What is wrong is said with the form that is right, and never with the value.
func TestReadRefuses(t *testing.T) {
	t.Setenv("KILN_TEST_TOKEN", canary)
	large := file(t, "large", canary+strings.Repeat("x", maxSecret))
	for _, flag := range []string{
		"", "src=x", "id=x,src=/nonexistent", "id=x,env=KILN_TEST_NONE", "id=x,value=" + canary, "id=x,type=vault", "id=x,src=" + large, "id=x,src=/", `id="x`,
	} {
		got, err := Read([]string{flag})
		if err == nil || !strings.Contains(err.Error(), "--secret") || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v, %v", flag, got, err)
		}
	}
}

func TestReadSSH(t *testing.T) {
	key := file(t, "id_ed25519", canary)
	got, err := ReadSSH([]string{"default=" + key + "," + key, "git=" + key})
	if err != nil || len(got) != 3 || got[0].GetId() != "default" || got[2].GetId() != "git" || string(got[2].GetPrivateKey()) != canary {
		t.Errorf("%v, %v", got, err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	for flag, want := range map[string]string{
		"default": "name a key", "git": "--ssh git=", "": "name a key", "default=": "name a key", "default=/nonexistent": "no such file", "default=" + socket: "not a file",
	} {
		if _, err := ReadSSH([]string{flag}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", flag, err, want)
		}
	}
}
