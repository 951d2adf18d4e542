package failpoint_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// build builds a program that comes by failpoints.
func build(t *testing.T, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "twice")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", append(append([]string{"build", "-o", path}, args...), "./testdata/twice")...).CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// run runs it, and returns what it wrote and the signal that ended it.
func run(t *testing.T, path, failpoint string) (out string, signal syscall.Signal, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(os.Environ(), "KILN_FAILPOINT="+failpoint)
	raw, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			signal = status.Signal()
		}
	}
	return strings.Join(strings.Fields(string(raw)), " "), signal, err
}

func TestHitKills(t *testing.T) {
	path := build(t, "-tags", "failpoints")
	for failpoint, want := range map[string]struct {
		out  string
		dies bool
	}{
		"":               {out: "first second first second"},
		"twice":          {out: "first second first second"},
		"twice.first":    {out: "first", dies: true},
		"twice.first:2":  {out: "first second first", dies: true},
		"twice.second":   {out: "first second", dies: true},
		"twice.second:2": {out: "first second first second", dies: true},
		"twice.second:3": {out: "first second first second"},
	} {
		out, signal, err := run(t, path, failpoint)
		if out != want.out || (signal == syscall.SIGKILL) != want.dies || (err == nil) == want.dies {
			t.Errorf("%q: it wrote %q and ended with %v", failpoint, out, err)
		}
	}
	for _, wrong := range []string{"twice.first:", "twice.first:x", "twice.first:0"} {
		if out, signal, err := run(t, path, wrong); err == nil || signal != 0 || out != "first" {
			t.Errorf("%q: it wrote %q and ended with %v, want a panic", wrong, out, err)
		}
	}
}

// Without the tag there is nothing to hit: not the variable, and not the call.
func TestHitIsNothingWithoutTheTag(t *testing.T) {
	path := build(t)
	if out, _, err := run(t, path, "twice.first"); err != nil || out != "first second first second" {
		t.Errorf("it wrote %q and ended with %v", out, err)
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(binary), "KILN_FAILPOINT") || strings.Contains(string(binary), "kiln/pkg/failpoint.Hit") {
		t.Error("the program holds the failpoints")
	}
}
