package lab

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Output is what a command wrote.
type Output struct {
	// Stdout and Stderr are its standard output and error.
	Stdout, Stderr string
}

// Exec runs a command to its end. It is killed, with its process group, when ctx
// ends. The error of one that fails holds its arguments and what it wrote.
func Exec(ctx context.Context, c Command) (Output, error) {
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Env, cmd.Dir = append(Environ(), c.Env...), c.Dir
	cmd.Stdin = strings.NewReader(c.Stdin)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	runtime.LockOSThread() // Pdeathsig fires when the forking thread ends.
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	out := Output{Stdout: stdout.String(), Stderr: stderr.String()}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return out, fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(c.Path), strings.Join(c.Args, " "), err, out.Stdout, out.Stderr)
	}
	return out, nil
}
