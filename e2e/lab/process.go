package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Command says what to run as a part of the lab.
type Command struct {
	// Name is the part's name in errors and logs.
	Name string
	// Path is the binary.
	Path string
	// Args are its arguments, without the name of the program.
	Args []string
	// Env is added to Environ, or replaces what is there.
	Env []string
	// Dir is its working directory. Empty: the lab's.
	Dir string
	// Stdin is its standard input, for Exec.
	Stdin string
	// ResolvConf is a file that it finds in the place of /etc/resolv.conf: it looks
	// names up as that says, and the rest of the machine does not. Needs root.
	ResolvConf string
}

// resolving is c in a mount namespace of its own, where ResolvConf is in its place.
func (c Command) resolving() Command {
	if c.ResolvConf == "" {
		return c
	}
	const script = `mount --bind "$0" /etc/resolv.conf && exec "$@"`
	c.Args = append([]string{"unshare", "--mount", "/bin/sh", "-c", script, c.ResolvConf, c.Path}, c.Args...)
	c.Path = "/usr/bin/env"
	return c
}

// Process is a running part.
type Process struct {
	// Name is the part's name.
	Name string

	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // Of Wait; set before done is closed.
}

// Environ returns the environment that the lab's processes get: this one's
// without what would change how they behave (telemetry, Kiln and BuildKit
// settings, Docker credentials), and with the directories in which distributions
// put runc at the end of PATH.
func Environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		drop := false
		for _, prefix := range []string{"OTEL_", "KILN_", "BUILDKIT", "BUILDX_", "DOCKER_"} {
			drop = drop || strings.HasPrefix(kv, prefix)
		}
		if !drop {
			env = append(env, kv)
		}
	}
	// What other stacks run on this machine is none of a test's business.
	profiles := fmt.Sprintf("KILN_RUN_DIR=%s/kiln-lab-run-%d", os.TempDir(), os.Getpid())
	return append(env, profiles, "DOCKER_CONFIG=/nonexistent", "PATH="+os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
}

// Run starts a command as a part of the lab: in its own process group, killed
// with the calling program, ended by Close.
func (l *Lab) Run(c Command) (*Process, error) {
	c = c.resolving()
	if c.Dir == "" {
		c.Dir = l.Dir
	}
	logDir, err := l.subdir("log-" + c.Name)
	if err != nil {
		return nil, err
	}
	p, err := start(c, filepath.Join(logDir, "log"))
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.procs = append(l.procs, p)
	l.mu.Unlock()
	l.OnClose(c.Name, func(ctx context.Context) error { return errors.Join(p.Stop(ctx), p.races()) })
	return p, nil
}

// races is the report of the race detector, when the binary was built with it and
// it found one.
func (p *Process) races() error {
	out := p.Output()
	at := strings.Index(out, "WARNING: DATA RACE")
	if at < 0 {
		return nil
	}
	return fmt.Errorf("lab: %s: %s", p.Name, out[at:min(at+8<<10, len(out))])
}

func start(c Command, logPath string) (*Process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", c.Name, err)
	}
	defer func() { _ = log.Close() }() // The child has its own.
	// It lives until Stop, not as long as a call.
	cmd := exec.CommandContext(context.Background(), c.Path, c.Args...)
	cmd.Env = append(Environ(), c.Env...)
	cmd.Dir = c.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &Process{Name: c.Name, cmd: cmd, log: logPath, done: make(chan struct{})}

	started := make(chan error, 1)
	go func() {
		// Pdeathsig fires when the forking thread ends, not the program: hold it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("lab: starting %s: %w", c.Name, err)
	}
	return p, nil
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed once the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode returns the exit code of an ended process, -1 when a signal ended it
// or it still runs.
func (p *Process) ExitCode() int {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

func (p *Process) exitError() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// Signal sends sig to the process and its group. A process that has ended is no
// error.
func (p *Process) Signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := syscall.Kill(-p.PID(), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("lab: %s: %s: %w", p.Name, sig, err)
	}
	return nil
}

// Pause stops the process as if it hung (SIGSTOP). Resume ends that.
func (p *Process) Pause() error { return p.Signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (p *Process) Resume() error { return p.Signal(syscall.SIGCONT) }

// Stop ends the process with SIGTERM, and kills it when that takes more than 20
// seconds or ctx ends, which is an error.
func (p *Process) Stop(ctx context.Context) error {
	_ = p.Signal(syscall.SIGTERM)
	_ = p.Signal(syscall.SIGCONT)
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	case <-grace.C:
	}
	return errors.Join(
		fmt.Errorf("lab: %s did not end within %s of SIGTERM and was killed\n%s", p.Name, stopGrace, p.Tail(30)),
		p.Kill())
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopGrace):
		return fmt.Errorf("lab: %s: still there after SIGKILL", p.Name)
	}
}

// Tail returns the last lines that the process wrote to its standard output and
// error.
func (p *Process) Tail(lines int) string {
	const most = 64 << 10
	f, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err == nil && st.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd)
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return ""
	}
	all := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// Output returns all that the process has written so far, up to 16 MiB.
func (p *Process) Output() string {
	f, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	data, _ := io.ReadAll(io.LimitReader(f, 16<<20))
	return string(data)
}
