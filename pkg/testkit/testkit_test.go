package testkit_test

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/testkit"
)

// recorder is a test whose failure is looked at, not felt.
type recorder struct {
	testing.TB
	failures []string
	cleanups []func()
}

func (r *recorder) Helper()                   {}
func (r *recorder) Cleanup(f func())          { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Failed() bool              { return len(r.failures) > 0 }
func (r *recorder) Error(args ...any)         { r.failures = append(r.failures, fmt.Sprint(args...)) }
func (r *recorder) Errorf(f string, a ...any) { r.failures = append(r.failures, fmt.Sprintf(f, a...)) }
func (r *recorder) Fatalf(f string, a ...any) {
	r.Errorf(f, a...)
	panic(r) // Ends the function that called, as FailNow would.
}

func (r *recorder) run(f func()) {
	defer func() {
		if thrown := recover(); thrown != nil && thrown != any(r) {
			panic(thrown)
		}
	}()
	f()
}

func (r *recorder) end() {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.run(r.cleanups[i])
	}
}

func TestVerifyNoLeaksSeesALeak(t *testing.T) {
	r := &recorder{TB: t}
	testkit.VerifyNoLeaks(r)
	stop := make(chan struct{})
	go func() { <-stop }()
	r.end()
	close(stop)
	if len(r.failures) == 0 {
		t.Error("a goroutine that was left over passed")
	}
}

func TestEventuallyGivesUp(t *testing.T) {
	r := &recorder{TB: t}
	r.run(func() { testkit.Eventually(r, 20*time.Millisecond, func() bool { return false }) })
	if len(r.failures) != 1 || !strings.Contains(r.failures[0], "within 20ms") {
		t.Errorf("failures: %q", r.failures)
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// The whole group ends, also a grandchild that ignores SIGTERM.
func TestStartProcessEndsTheGroup(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	r := &recorder{TB: t}
	script := `trap 'exit 7' TERM; sh -c 'trap "" TERM; echo grandchild $$; while :; do sleep 0.1; done' & wait`
	p := testkit.StartProcess(r, "shell", exec.CommandContext(t.Context(), "sh", "-c", script))
	var grandchild int
	testkit.Eventually(t, 10*time.Second, func() bool {
		_, text, found := strings.Cut(p.Output(), "grandchild ")
		if !found || !strings.Contains(text, "\n") {
			return false
		}
		var err error
		grandchild, err = strconv.Atoi(strings.Fields(text)[0])
		return err == nil
	})
	r.end()
	if code := p.Wait(t, time.Second); code != 7 {
		t.Errorf("exit code %d, want 7: SIGTERM comes first", code)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return !alive(grandchild) })
	if len(r.failures) > 0 {
		t.Errorf("failures: %q", r.failures)
	}
}

func TestStartProcessReports(t *testing.T) {
	p := testkit.StartProcess(t, "true", exec.CommandContext(t.Context(), "true"))
	if code := p.Wait(t, 10*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	r := &recorder{TB: t}
	r.run(func() { testkit.StartProcess(r, "missing", exec.CommandContext(t.Context(), "/nothing/here")) })
	if len(r.failures) != 1 || !strings.Contains(r.failures[0], "starting missing") {
		t.Errorf("failures: %q", r.failures)
	}
	slow := testkit.StartProcess(t, "sleep", exec.CommandContext(t.Context(), "sleep", "60"))
	r = &recorder{TB: t}
	r.run(func() { slow.Wait(r, 20*time.Millisecond) })
	if len(r.failures) != 1 || !strings.Contains(r.failures[0], "has not ended within 20ms") {
		t.Errorf("failures: %q", r.failures)
	}
}

func TestTempUnixSocketIsShort(t *testing.T) {
	if path := testkit.TempUnixSocket(t); len(path) > 60 {
		t.Errorf("%q has %d bytes", path, len(path))
	}
}
