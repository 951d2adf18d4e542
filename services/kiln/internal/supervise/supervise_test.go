package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	// Re-executed as a supervisor that a test can kill.
	if dir := os.Getenv("SUPERVISE_IN"); dir != "" {
		child := New(Spec{
			Name: "sleep", Path: "/bin/sleep", Args: []string{"300"}, LogPath: filepath.Join(dir, "log"),
			Ready: func(context.Context) error { return nil },
		})
		go func() {
			<-child.Ready()
			_ = os.WriteFile(filepath.Join(dir, "pid"), fmt.Append(nil, child.PID()), 0o600)
		}()
		_ = child.Run(context.Background())
		return
	}
	goleak.VerifyTestMain(m)
}

// recorder collects the reported lines.
type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) report(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

func shell(t *testing.T, script string) (Spec, *recorder) {
	t.Helper()
	said := &recorder{}
	return Spec{
		Name: "part", Path: "/bin/sh", Args: []string{"-c", script},
		LogPath: filepath.Join(t.TempDir(), "part.log"),
		Ready:   func(context.Context) error { return nil },
		Grace:   5 * time.Second,
		Backoff: Backoff{Min: 10 * time.Millisecond, Max: 40 * time.Millisecond, Reset: time.Minute},
		Report:  said.report,
	}, said
}

// start runs a child, and returns a function that stops it and gives Run's error.
func start(t *testing.T, spec Spec) (*Child, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	child := New(spec)
	done := make(chan error, 1)
	go func() { done <- child.Run(ctx) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return child, stop
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10s: %s", what)
		}
	}
}

func alive(pid int) bool { return pid != 0 && unix.Kill(pid, 0) == nil }

func TestRestartsWithBackoff(t *testing.T) {
	spec, said := shell(t, "exec sleep 300")
	child, stop := start(t, spec)
	<-child.Ready()
	for n := 1; n <= 4; n++ {
		eventually(t, "it runs", func() bool { return alive(child.PID()) })
		pid := child.PID()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it was started again", func() bool { return child.PID() != 0 && child.PID() != pid })
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	var waits []string
	for _, line := range said.all() {
		before, wait, found := strings.Cut(line, "; starting it again in ")
		if !found || before != "part ended (signal: killed)" {
			t.Errorf("said %q", line)
		}
		waits = append(waits, wait)
	}
	if want := []string{"10ms", "20ms", "40ms", "40ms"}; !slices.Equal(waits, want) {
		t.Errorf("waits = %v, want %v", waits, want)
	}
	if child.PID() != 0 {
		t.Error("a stopped child has a pid")
	}
}

func TestBackoffStartsAgainAfterALongRun(t *testing.T) {
	b := Backoff{Min: time.Second, Max: 8 * time.Second, Reset: time.Minute}
	if got := b.next(8*time.Second, time.Hour); got != time.Second {
		t.Errorf("after an hour: %s", got)
	}
	if got := b.next(4*time.Second, time.Second); got != 8*time.Second {
		t.Errorf("after a second: %s", got)
	}
}

func TestFailedStartShowsTheLog(t *testing.T) {
	spec, said := shell(t, "echo the reason; exit 3")
	if err := os.WriteFile(spec.LogPath, []byte("of an earlier start\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Ready = func(context.Context) error { return fmt.Errorf("not yet") }
	_, stop := start(t, spec)
	eventually(t, "the child's log", func() bool { return strings.Contains(tailFrom(spec.LogPath, 0), "reason") })
	time.Sleep(50 * time.Millisecond) // Let Run return by itself before stop does.
	err := stop()
	failed, ok := errors.AsType[*StartError](err)
	if !ok || !strings.Contains(err.Error(), "part did not start: exit status 3") || failed.Tail != "the reason" {
		t.Errorf("err = %v", err)
	}
	if lines := said.all(); len(lines) > 0 {
		t.Errorf("said %q of a child that never started", lines)
	}
}

// A child that runs for long does not fill the disk with its log, and no line is lost or cut
// between the two files.
func TestLog_IsPutAsideWhileTheChildRuns(t *testing.T) {
	spec, _ := shell(t, `i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo "line $i"; [ $i != 500 ] || sleep 0.3; done; echo done >"$0.done"; sleep 300`)
	spec.Args = append(spec.Args, spec.LogPath)
	spec.MaxLog = 6000 // of some 9 KB, so that there are two files
	_, stop := start(t, spec)
	eventually(t, "the child wrote all", func() bool { _, err := os.Stat(spec.LogPath + ".done"); return err == nil })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, path := range []string{spec.LogPath + ".1", spec.LogPath} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > int(spec.MaxLog) {
			t.Errorf("%s has %d bytes", path, len(data))
		}
		all = append(all, data...)
	}
	if lines := strings.Count(string(all), "\n"); lines != 1000 || !strings.HasSuffix(string(all), "line 1000\n") {
		t.Errorf("%d lines, the last of which are %q", lines, all[max(0, len(all)-30):])
	}
}

func TestMissingProgram(t *testing.T) {
	spec, _ := shell(t, "")
	spec.Path = "/nonexistent/program"
	if err := New(spec).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "/nonexistent/program") {
		t.Errorf("err = %v", err)
	}
}

func TestPrepareRunsBeforeEachStart(t *testing.T) {
	spec, _ := shell(t, "sleep 0.05; exit 1")
	count := filepath.Join(t.TempDir(), "count")
	spec.Prepare = func(context.Context) error {
		old, _ := os.ReadFile(count)
		return os.WriteFile(count, append(old, 'x'), 0o600)
	}
	_, stop := start(t, spec)
	eventually(t, "three starts", func() bool { n, _ := os.ReadFile(count); return len(n) >= 3 })
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// What ignores SIGTERM is killed after the grace time, with what it started.
func TestStubbornGroupIsKilled(t *testing.T) {
	spec, _ := shell(t, `trap "" TERM; sleep 300 & echo $! >&2; while :; do sleep 0.1; done`)
	spec.Grace = 200 * time.Millisecond
	child, stop := start(t, spec)
	<-child.Ready()
	var grandchild int
	eventually(t, "the grandchild's pid", func() bool {
		_, err := fmt.Sscan(tailFrom(spec.LogPath, 0), &grandchild)
		return err == nil
	})
	begun := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took < spec.Grace || took > 5*time.Second {
		t.Errorf("it took %s, with a grace of %s", took, spec.Grace)
	}
	eventually(t, "the grandchild ends", func() bool { return !running(grandchild) })
}

func TestKillDoesNotWait(t *testing.T) {
	spec, said := shell(t, `trap "" TERM; while :; do sleep 0.1; done`)
	spec.Grace = time.Hour
	child, stop := start(t, spec)
	<-child.Ready()
	child.Kill()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if lines := said.all(); len(lines) > 0 {
		t.Errorf("said %q of an end that was asked for", lines)
	}
}

// The child dies with a supervisor that is killed.
func TestSupervisorKilled(t *testing.T) {
	dir := t.TempDir()
	supervisor := exec.CommandContext(t.Context(), os.Args[0])
	supervisor.Env = append(os.Environ(), "SUPERVISE_IN="+dir)
	if err := supervisor.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	eventually(t, "the child's pid", func() bool {
		text, _ := os.ReadFile(filepath.Join(dir, "pid"))
		_, err := fmt.Sscan(string(text), &pid)
		return err == nil && alive(pid)
	})
	_ = supervisor.Process.Kill()
	_ = supervisor.Wait()
	eventually(t, "the child ends too", func() bool { return !running(pid) })
}

// running is false for a zombie, which nobody here can reap.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if got := tailFrom(path, 0); got != "" {
		t.Errorf("no file: %q", got)
	}
	var all strings.Builder
	for n := range 2000 {
		fmt.Fprintf(&all, "line %d\n", n)
	}
	if err := os.WriteFile(path, []byte(all.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(tailFrom(path, 0), "\n")
	if len(lines) != tailLines || lines[0] != "line 1985" || lines[len(lines)-1] != "line 1999" {
		t.Errorf("tail = %q", lines)
	}
	if got, want := tailFrom(path, int64(all.Len()-len("line 1998\nline 1999\n"))), "line 1998\nline 1999"; got != want {
		t.Errorf("tail from an offset = %q", got)
	}
	if got := tailFrom(path, int64(all.Len())); got != "" {
		t.Errorf("tail from the end = %q", got)
	}
}
