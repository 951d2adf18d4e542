package service_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nobody makes a command run as a user that is not root, who may read everything.
func nobody(cmd *exec.Cmd) *exec.Cmd {
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	return cmd
}

// buildCanary builds the program that holds a secret, where nobody may run it.
func buildCanary(t *testing.T) (path, dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	path = filepath.Join(dir, "canary")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", path, "./testdata/canary").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path, dir
}

// reads says whether another process of the user can open a file.
func reads(t *testing.T, path string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := nobody(exec.CommandContext(ctx, "sh", "-c", `exec 3<"$0"`, path)).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || !strings.Contains(string(out), "ermission denied")) {
		t.Fatalf("opening %s: %v %v %s", path, err, exit, out)
	}
	return err == nil
}

// A process that holds a secret is aborted where core files have no limit.
func TestNoCoreDumps(t *testing.T) {
	path, dir := buildCanary(t)
	for kind, wantDump := range map[string]bool{"guarded": false, "open": true} {
		t.Run(kind, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := nobody(exec.CommandContext(ctx, "sh", "-c", `ulimit -c unlimited; exec "$0" "$1"`, path, kind))
			cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOTRACEBACK=crash")
			hold, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = hold.Close() }()
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "ready ") || line == "ready 0\n" {
				t.Errorf("it wrote %q, %v", line, err)
			}
			for _, file := range []string{"mem", "environ"} {
				if got := reads(t, fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, file)); got != wantDump {
					t.Errorf("others can read %s: %v, want %v", file, got, wantDump)
				}
			}
			if got, want := coreLimit(t, cmd.Process.Pid), map[bool]string{true: "unlimited", false: "0"}[wantDump]; got != want {
				t.Errorf("core files of its children are limited to %s, want %s", got, want)
			}
			if err := cmd.Process.Signal(syscall.SIGABRT); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, out)
			err = cmd.Wait()
			status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !ok || status.Signal() != syscall.SIGABRT {
				t.Fatalf("it ended with %v", err)
			}
			checkDump(t, dir, status, wantDump)
		})
	}
}

// coreLimit is the size that core files of a process and its children may have.
func coreLimit(t *testing.T, pid int) string {
	t.Helper()
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(limits), "Max core file size")
	return strings.Fields(line)[0]
}

// checkDump looks for a core file. The unguarded process must leave one, or the
// test shows nothing, unless this machine hands core files to a program.
func checkDump(t *testing.T, dir string, status syscall.WaitStatus, want bool) {
	t.Helper()
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	if want && bytes.ContainsAny(pattern, "|/") {
		t.Logf("core files go to %s", pattern)
		return
	}
	if status.CoreDump() != want {
		t.Errorf("core dumped: %v, want %v", status.CoreDump(), want)
	}
	cores, err := filepath.Glob(filepath.Join(dir, "core*"))
	if err != nil || (len(cores) > 0) != want {
		t.Fatalf("core files: %v, %v", cores, err)
	}
	for _, core := range cores {
		data, err := os.ReadFile(core)
		if err != nil || !bytes.Contains(data, []byte("canary-canary-canary-")) {
			t.Errorf("%s does not hold the memory: %v", core, err)
		}
		if err := os.Remove(core); err != nil {
			t.Error(err)
		}
	}
}
