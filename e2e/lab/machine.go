package lab

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

//go:embed machine.sh
var bootMachine string

// Machine is a host with systemd, in namespaces of its own, that has the files of this one
// when it starts: what is done there is not seen outside, and goes with it. Needs root.
type Machine struct {
	*Process
	init int // systemd's process id, here
}

// StartMachine boots one, with the repository in /mnt.
func (l *Lab) StartMachine(ctx context.Context) (*Machine, error) {
	repository, err := RepoRoot()
	if err != nil {
		return nil, err
	}
	dir, err := l.subdir("machine")
	if err != nil {
		return nil, err
	}
	script := filepath.Join(dir, "boot.sh")
	if err := os.WriteFile(script, []byte(bootMachine), 0o700); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	cgroup := filepath.Base(l.Dir)
	l.OnClose("cgroups of the machine", func(ctx context.Context) error { return RemoveCgroups(ctx, cgroup) })
	p, err := l.Run(Command{Name: "machine", Path: script, Args: []string{dir, repository, cgroup}})
	if err != nil {
		return nil, err
	}
	// systemd takes SIGTERM for something else.
	l.OnClose("machine", func(context.Context) error { return p.Kill() })
	m := &Machine{Process: p}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if m.init == 0 {
			m.init = childOf(p.PID())
		} else if out, _ := m.Exec(ctx, "systemctl is-active lab.target"); strings.TrimSpace(out.Stdout) == "active" {
			return m, nil
		}
		select {
		case <-p.Done():
			return nil, fmt.Errorf("lab: the machine did not boot: %w\n%s", p.exitError(), p.Tail(20))
		case <-ctx.Done():
			return nil, fmt.Errorf("lab: the machine has not booted in %s\n%s", startTimeout, p.Tail(20))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// childOf is a child of a process, 0 when it has none yet.
func childOf(pid int) int {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		_, rest, ok := strings.Cut(string(raw), ") ") // after the name: state, parent
		if fields := strings.Fields(rest); err == nil && ok && len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(file))) // as the pattern says
			return child
		}
	}
	return 0
}

// Exec runs a script of bash on the machine, in the repository; a script that fails is an error.
func (m *Machine) Exec(ctx context.Context, script string) (Output, error) {
	return Exec(ctx, Command{Name: "machine: " + script, Path: "/usr/bin/env", Dir: "/", Args: []string{
		"nsenter", "--target", strconv.Itoa(m.init), "--all", "/usr/bin/env", "-i", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"/bin/bash", "-euo", "pipefail", "-c", "cd /mnt\n" + script,
	}})
}

// RemoveCgroups removes the cgroups of a name in all hierarchies, with those below them, in
// which nothing runs any more.
func RemoveCgroups(ctx context.Context, name string) error {
	_, err := Exec(ctx, Command{Path: "/bin/sh", Args: []string{
		"-c", `for d in /sys/fs/cgroup/"$0" /sys/fs/cgroup/*/"$0"; do [ ! -d "$d" ] || find "$d" -depth -type d -exec rmdir {} + || exit 1; done`, name,
	}})
	return err
}
