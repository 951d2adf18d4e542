package profile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// isolate gives a test directories of its own.
func isolate(t *testing.T) (run, user string) {
	t.Helper()
	root := t.TempDir()
	t.Setenv("KILN_RUN_DIR", filepath.Join(root, "run"))
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(root, "config"))
	t.Setenv("KILN_PROFILE", "")
	t.Setenv("SUDO_UID", "")
	return RunDir(), filepath.Join(root, "config", "kiln")
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// publish publishes a profile as a running kiln up does.
func publish(t *testing.T, name, builder string) *Profile {
	t.Helper()
	p := &Profile{Name: name, DataDir: t.TempDir(), Builder: Service{Address: builder}, Process: Self()}
	if err := p.Publish(); err != nil {
		t.Fatal(err)
	}
	return p
}

func builderOf(t *testing.T, name string) string {
	t.Helper()
	p, err := Select(name)
	if err != nil {
		t.Fatal(err)
	}
	return p.Builder.Address
}

func TestSelect_FollowsTheDocumentedOrder(t *testing.T) {
	run, user := isolate(t)
	if got := builderOf(t, ""); got != "127.0.0.1:50051" {
		t.Errorf("nothing is configured: %s", got)
	}
	stack := publish(t, "stack-1", "127.0.0.1:7000")
	if got := builderOf(t, ""); got != "127.0.0.1:7000" {
		t.Errorf("one kiln up runs: %s", got)
	}
	publish(t, "stack-2", "127.0.0.1:8000")
	if _, err := Select(""); err == nil || !strings.Contains(err.Error(), "stack-1, stack-2") {
		t.Errorf("two run: %v", err)
	}
	publish(t, Local, "127.0.0.1:9000")
	if got := builderOf(t, ""); got != "127.0.0.1:9000" {
		t.Errorf("the default data directory's runs too: %s", got)
	}
	write(t, filepath.Join(user, "profiles", "work.yaml"), "builder: {address: work:1}\n")
	if err := Choose("work"); err != nil {
		t.Fatal(err)
	}
	if got := builderOf(t, ""); got != "work:1" {
		t.Errorf("kiln profile use work: %s", got)
	}
	t.Setenv("KILN_PROFILE", "stack-1")
	if got := builderOf(t, ""); got != "127.0.0.1:7000" {
		t.Errorf("KILN_PROFILE: %s", got)
	}
	if got := builderOf(t, "stack-2"); got != "127.0.0.1:8000" {
		t.Errorf("--profile: %s", got)
	}
	if got := builderOf(t, filepath.Join(run, "local.yaml")); got != "127.0.0.1:9000" {
		t.Errorf("--profile with a path: %s", got)
	}
	if err := stack.Withdraw(); err != nil {
		t.Fatal(err)
	}
	if _, err := Select(""); err == nil || !strings.Contains(err.Error(), `"stack-1"`) {
		t.Errorf("a name without a profile: %v", err)
	}
}

func TestRunning_LeavesOutStacksThatEnded(t *testing.T) {
	isolate(t)
	p := publish(t, "dead", "127.0.0.1:7000")
	p.Process.Started++
	if err := p.Publish(); err != nil {
		t.Fatal(err)
	}
	if all := Running(); len(all) != 0 {
		t.Errorf("%+v", all[0])
	}
	if got := builderOf(t, ""); got != "127.0.0.1:50051" {
		t.Errorf("the dead stack was selected: %s", got)
	}
}

func TestPublish_HidesProfilesThatNameSecrets(t *testing.T) {
	isolate(t)
	p := publish(t, "open", "127.0.0.1:7000")
	if mode := modeOf(t, p.Path); mode != 0o644 {
		t.Errorf("without secrets: %o", mode)
	}
	p.Builder.TokenFile = "/x/token"
	if err := p.Publish(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{p.Path, filepath.Join(p.DataDir, "profile.yaml")} {
		if mode := modeOf(t, path); mode != 0o600 {
			t.Errorf("%s names a token: %o", path, mode)
		}
	}
}

func modeOf(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestWithdraw_KeepsTheProfileOfASuccessor(t *testing.T) {
	isolate(t)
	old := &Profile{Name: "a", Process: &Process{PID: 1, Started: 7}}
	next := publish(t, "a", "127.0.0.1:7000")
	if err := old.Withdraw(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(next.Path); err != nil {
		t.Error(err)
	}
}

func TestLoad_RefusesUnknownFieldsAndOpenFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(write(t, filepath.Join(dir, "a.yaml"), "biulder: {}\n")); err == nil || !strings.Contains(err.Error(), "biulder") {
		t.Errorf("unknown field: %v", err)
	}
	open := write(t, filepath.Join(dir, "b.yaml"), "builder: {address: a:1}\n")
	if err := os.Chmod(open, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(open); err == nil {
		t.Error("a file that every user may write to was read")
	}
	p, err := Load(write(t, filepath.Join(dir, "c.yaml"), "builder: {address: a:1, token_file: me.token}\n"))
	if err != nil || p.Builder.TokenFile != filepath.Join(dir, "me.token") {
		t.Errorf("%+v, %v", p, err)
	}
}
