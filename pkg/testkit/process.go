package testkit

import (
	"bytes"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// stopWithin is how long a process has to heed SIGTERM before it is killed.
const stopWithin = 10 * time.Second

// Process is a child that ends with the test.
type Process struct {
	name   string
	cmd    *exec.Cmd
	output *buffer
	ended  chan struct{}
	err    error // Of Wait; read after ended.
}

// StartProcess starts a command in its own process group. At the end of the test
// the group gets SIGTERM, then SIGKILL; should the test process itself die, the
// kernel kills the child. What the command wrote is logged if the test failed.
// Output that the caller set on cmd is left to the caller.
func StartProcess(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{name: name, cmd: cmd, output: &buffer{}, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.output
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.output
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// A grandchild that keeps the output open must not hold up Wait.
	cmd.WaitDelay = 2 * time.Second
	started := make(chan error, 1)
	go func() {
		// Pdeathsig fires when the thread that started the child ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
		close(p.ended)
	}()
	if err := <-started; err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	t.Cleanup(func() {
		p.Stop(t)
		if t.Failed() {
			t.Logf("output of %s:\n%s", name, p.Output())
		}
	})
	return p
}

// Pid is the id of the process, and of its group.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Output is what the process has written so far.
func (p *Process) Output() string { return p.output.String() }

// Signal sends a signal to the whole group.
func (p *Process) Signal(sig syscall.Signal) error { return syscall.Kill(-p.Pid(), sig) }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait waits for the end and returns the exit code; -1 stands for a signal.
func (p *Process) Wait(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		t.Fatalf("%s has not ended within %s", p.name, within)
		return -1
	}
}

// Stop ends the process and all of its group. It may be called again.
func (p *Process) Stop(t testing.TB) {
	t.Helper()
	select {
	case <-p.ended:
	default:
		_ = p.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(stopWithin):
			t.Logf("%s did not heed SIGTERM within %s", p.name, stopWithin)
		}
	}
	_ = p.Signal(syscall.SIGKILL) // What is left of the group.
	select {
	case <-p.ended:
	case <-time.After(stopWithin):
		t.Errorf("%s could not be killed", p.name)
	}
}

// buffer is a bytes.Buffer for several goroutines, which keeps the last part.
type buffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

const maxOutput = 1 << 20

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.data.Len() > maxOutput {
		b.data.Next(maxOutput / 2)
	}
	return b.data.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.ToValidUTF8(b.data.String(), "?")
}
