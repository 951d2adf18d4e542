package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// kilnIn runs the kiln command with the profiles of a directory and no address.
func kilnIn(t *testing.T, runDir string, args ...string) (lab.Output, error) {
	t.Helper()
	return lab.Exec(labtest.Context(t, time.Minute), lab.Command{
		Path: labtest.Must(lab.Bin("kiln"))(t), Args: args, Env: []string{"KILN_RUN_DIR=" + runDir, "XDG_CONFIG_HOME=" + filepath.Join(runDir, "config")},
	})
}

// Every command finds the stack of a running kiln up on other ports, all parts
// of it, and the one with the name when there are several.
func TestProfile_CommandsFindTheRunningStack(t *testing.T) {
	l := labtest.New(t)
	runDir := t.TempDir()
	up := startUp(t, l, lab.UpOptions{Env: []string{"KILN_RUN_DIR=" + runDir}})
	labtest.Eventually(t, 10*time.Second, "the summary", func() bool { return strings.Contains(up.Output(), "Ctrl-C") })

	for _, command := range [][]string{
		{"builds", "ls"}, {"workers"}, {"cache", "du"}, {"cache", "policy", "get"}, {"janitor", "policy", "get"}, {"janitor", "runs"},
	} {
		if _, err := kilnIn(t, runDir, command...); err != nil {
			t.Error(err)
		}
	}
	registry := "localhost:" + strconv.Itoa(up.Base+20)
	shown := labtest.Must(kilnIn(t, runDir, "profile", "show"))(t).Stdout
	for _, want := range []string{up.Builder, up.CacheManager, up.Janitor, registry, up.Buildkitd, up.DataDir} {
		if !strings.Contains(shown, want) {
			t.Errorf("no %s in the profile:\n%s", want, shown)
		}
	}
	debugFinds(t, runDir, up, registry)

	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	if _, err := kilnIn(t, runDir, "build-registry", dir, dir, registry+"/web:1"); err != nil {
		t.Errorf("the cache is not in the registry of the stack: %v", err)
	}

	second := startUp(t, l, lab.UpOptions{Env: []string{"KILN_RUN_DIR=" + runDir}})
	labtest.Eventually(t, 10*time.Second, "the summary", func() bool { return strings.Contains(second.Output(), "Ctrl-C") })
	if out, err := kilnIn(t, runDir, "builds", "ls"); err == nil || !strings.Contains(err.Error(), "--profile") {
		t.Errorf("two stacks run: %v %v", out, err)
	}
	if _, err := kilnIn(t, runDir, "builds", "ls", "--profile", filepath.Join(second.DataDir, "profile.yaml")); err != nil {
		t.Error(err)
	}
	for _, stack := range []*lab.Up{second, up} {
		if err := stack.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-stack.Done()
	}
	if left := labtest.Must(filepath.Glob(filepath.Join(runDir, "profiles", "*")))(t); len(left) > 0 {
		t.Errorf("profiles left: %v", left)
	}
	if _, err := os.Stat(filepath.Join(up.DataDir, "profile.yaml")); err != nil {
		t.Error(err)
	}
}

// debugFinds checks that kiln debug looks at the parts of a stack and at no others.
func debugFinds(t *testing.T, runDir string, up *lab.Up, registry string) {
	t.Helper()
	out, _ := kilnIn(t, runDir, "debug", "--format", "json") // Other things of this machine are not as it wants them.
	var report struct {
		Profile  string
		Findings []struct{ Check, State, Message string }
	}
	if err := json.Unmarshal([]byte(out.Stdout), &report); err != nil {
		t.Fatalf("%v: %s", err, out.Stdout)
	}
	var services int
	for _, f := range report.Findings {
		switch f.Check {
		case "services":
			services++
			if f.State != "ok" || !strings.Contains(f.Message, "127.0.0.1:"+strconv.Itoa(up.Base)[:2]) {
				t.Errorf("%+v", f)
			}
		case "registry":
			if f.State != "ok" || !strings.Contains(f.Message, registry) {
				t.Errorf("%+v", f)
			}
		case "daemon", "registry-protocol":
			if f.State != "ok" {
				t.Errorf("%+v", f)
			}
		}
	}
	if services != 3 || report.Profile == "default" || report.Profile == "" {
		t.Errorf("%d services, profile %q", services, report.Profile)
	}
}
