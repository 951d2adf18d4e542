package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// unitCommand is the command of a unit that is shipped, without its program.
func unitCommand(t *testing.T, unit string) []string {
	t.Helper()
	for line := range strings.Lines(string(labtest.Must(os.ReadFile(filepath.Join("../deploy/systemd", unit)))(t))) {
		if command, is := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); is {
			return strings.Fields(command)[1:]
		}
	}
	t.Fatalf("%s has no ExecStart", unit)
	return nil
}

// The timer's unit, with the configuration that is shipped, removes what nobody pushed for a week,
// though it listens to no notifications; what was pushed meanwhile stays.
func TestTimer_AgesWithoutAListener(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	putImage(t, registry, "cache/old:main", small(t))
	for _, kept := range []string{"app:v1", "app:v2"} { // so that most of the registry stays
		putImage(t, registry, kept, small(t))
	}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	labtest.Must(0, os.WriteFile(secret, []byte(strings.Repeat("s", 32)), 0o600))(t)
	args := unitCommand(t, "kiln-janitor-run.service")
	at := slices.Index(args, "--config")
	if at < 0 {
		t.Fatalf("the unit names no configuration: %q", args)
	}
	args[at+1] = labtest.Must(filepath.Abs("../deploy/config/janitor.yaml"))(t)
	for _, set := range []string{
		"registry.address=" + registry.Addr, "registry.storage_root=" + registry.Storage, "state_dir=" + filepath.Join(dir, "state"), "settle=10ms",
		"notifications.secret_file=" + secret,
	} {
		args = append(args, "--set", set)
	}
	path := labtest.Must(lab.Bin("failpoints/kiln-janitor"))(t)
	there := func(day int, want bool) {
		t.Helper()
		if err := pullWhole(ctx, registry.Addr, "cache/old:main"); (err == nil) != want {
			t.Errorf("on day %d: %v", day, err)
		}
	}
	for day := range 9 {
		moved := time.Duration(day) * 24 * time.Hour
		out := labtest.Must(lab.Exec(ctx, lab.Command{
			Name: "kiln-janitor run", Path: path, Args: args, Env: append(lab.OTLPEnv("", ""), "KILN_CLOCK="+(moved+time.Nanosecond).String()),
		}))(t)
		if !strings.Contains(out.Stdout, "SUCCEEDED") {
			t.Errorf("on day %d: %s%s", day, out.Stdout, out.Stderr)
		}
		if day != 7 { // when it just is a week
			there(day, day < 7)
		}
	}
	for _, kept := range []string{"app:v1", "app:v2"} {
		labtest.Must(0, pullWhole(ctx, registry.Addr, kept))(t)
	}
}
