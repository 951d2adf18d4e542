// Package supervise runs a program as a child process, starts it again when it
// ends, and leaves nothing of it behind.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec says what to run and how.
type Spec struct {
	// Name is the child's name in messages.
	Name string
	// Path is the program; Args are its arguments, without its name; Env is its
	// whole environment.
	Path string
	Args []string
	Env  []string
	// LogPath is the file that its output is appended to. At MaxLog bytes it is renamed to
	// LogPath.1, also while the child runs, and a new one is begun. 0: 64 MiB.
	LogPath string
	MaxLog  int64
	// Prepare is called before each start: after a crash there may be something
	// to clean up. An error counts as a failed start.
	Prepare func(context.Context) error
	// Ready is polled after a start until it returns nil.
	Ready func(context.Context) error
	// Grace is how long the child may take to end after SIGTERM.
	Grace time.Duration
	// Backoff is how long to wait between restarts.
	Backoff Backoff
	// Report is told, in one line, of each end that was not asked for.
	Report func(line string)
}

// Backoff is a waiting time that doubles from Min to Max, and starts again at
// Min once the child has run for Reset.
type Backoff struct {
	Min, Max, Reset time.Duration
}

// DefaultBackoff suits a daemon.
var DefaultBackoff = Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second, Reset: time.Minute}

func (b Backoff) next(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= b.Reset {
		return b.Min
	}
	return min(2*last, b.Max)
}

const (
	readyEvery   = 20 * time.Millisecond
	readyTimeout = 2 * time.Second
	// lastOutput is how long what a child wrote last is waited for once it has ended.
	lastOutput = time.Second
)

// StartError is a child that ended before it was ever ready.
type StartError struct {
	// Name is the child's name, LogPath its log, which says why.
	Name, LogPath string
	// Tail is the last lines that it wrote. It may be empty.
	Tail string
	// Err is how it ended.
	Err error
}

// Error names the child, how it ended, and its log.
func (e *StartError) Error() string {
	return fmt.Sprintf("%s did not start: %v; its log is %s", e.Name, e.Err, e.LogPath)
}

// Unwrap is how the child ended.
func (e *StartError) Unwrap() error { return e.Err }

// Child is one supervised program. Make one with New, and Run it once.
type Child struct {
	spec     Spec
	ready    chan struct{}
	logStart int64 // Size of the log before the last start. Run's alone.

	mu   sync.Mutex
	pid  int  // Of the running process, which leads its group; 0: none.
	kill bool // Kill was called: no patience, no restart.
}

// New makes a child that is not started yet.
func New(spec Spec) *Child { return &Child{spec: spec, ready: make(chan struct{})} }

// Ready is closed once the child has been ready for the first time.
func (c *Child) Ready() <-chan struct{} { return c.ready }

// PID returns the process id of the running child, 0 when there is none.
func (c *Child) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}

// Kill ends the child's process group at once, with SIGKILL. It is for a user
// who will not wait; Run returns as if its context had ended.
func (c *Child) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kill = true
	if c.pid != 0 {
		_ = unix.Kill(-c.pid, unix.SIGKILL)
	}
}

func (c *Child) killed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kill
}

// Run starts the child, starts it again whenever it ends, and returns nil after
// ctx has ended and the child has too: SIGTERM, the grace time, SIGKILL to its
// whole process group. A child that ends before it was ever ready is not started
// again: Run returns a *StartError.
func (c *Child) Run(ctx context.Context) error {
	var wait time.Duration
	for {
		begun := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil || c.killed() {
			return nil //nolint:nilerr // This end was asked for.
		}
		select {
		case <-c.ready:
		default:
			return &StartError{Name: c.spec.Name, LogPath: c.spec.LogPath, Tail: tailFrom(c.spec.LogPath, c.logStart), Err: err}
		}
		wait = c.spec.Backoff.next(wait, time.Since(begun))
		c.spec.Report(fmt.Sprintf("%s ended (%v); starting it again in %s", c.spec.Name, err, wait))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// once runs the child until it ends, and returns why it did.
func (c *Child) once(ctx context.Context) error {
	if c.spec.Prepare != nil {
		if err := c.spec.Prepare(ctx); err != nil {
			return err
		}
	}
	log, err := NewLog(c.spec.LogPath, c.spec.MaxLog)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // a log never fails its program
	c.logStart = log.size
	output, input, err := os.Pipe()
	if err != nil {
		return err
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(log, output) // to the end: a log always takes it
	}()
	defer func() {
		// Whatever the child left running is out of its group, and may hold the pipe open.
		_ = input.Close()
		_ = output.SetReadDeadline(time.Now().Add(lastOutput))
		<-copied
		_ = output.Close()
	}()

	ended := make(chan error, 1)
	go func() {
		// The death signal is tied to the thread that forks, not to the process:
		// the thread must live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ended <- c.process(ctx, input)
	}()
	return <-ended
}

func (c *Child) process(ctx context.Context, log *os.File) error {
	cmd := exec.CommandContext(ctx, c.spec.Path, c.spec.Args...)
	cmd.Env = c.spec.Env
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: a Ctrl-C at the terminal is for us, who end the parts
	// in their order. If we are killed, the kernel kills the child.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = c.spec.Grace

	c.mu.Lock()
	if c.kill {
		c.mu.Unlock()
		return context.Canceled
	}
	err := cmd.Start()
	if err == nil {
		c.pid = cmd.Process.Pid
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}

	watch, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		c.awaitReady(watch, cmd.Process.Pid)
	}()
	err = cmd.Wait()
	stop()
	<-watched

	c.mu.Lock()
	defer c.mu.Unlock()
	_ = unix.Kill(-c.pid, unix.SIGKILL) // What it left in its group.
	c.pid = 0
	if err == nil {
		err = errors.New("exit status 0")
	}
	return err
}

// awaitReady polls until the process is ready, for the first time or again. An
// answer counts only while the process lives: it may come from somebody else.
func (c *Child) awaitReady(ctx context.Context, pid int) {
	for {
		try, cancel := context.WithTimeout(ctx, readyTimeout)
		err := c.spec.Ready(try)
		cancel()
		if err == nil && ctx.Err() == nil && unix.Kill(pid, 0) == nil {
			select {
			case <-c.ready:
			default:
				close(c.ready)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(readyEvery):
		}
	}
}
