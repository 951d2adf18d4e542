package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// startTimeout bounds how long a part may take until it answers. Generous:
	// a race-built service on a machine with two busy cores takes seconds.
	startTimeout = 60 * time.Second
	// stopGrace is how long a part may take to end once it was told to.
	stopGrace = 20 * time.Second
	// maxSocketPath is what fits into sockaddr_un on every system, with room.
	maxSocketPath = 100
)

// Lab owns a temporary directory and all that runs in it. The zero value is not
// usable; New makes one.
type Lab struct {
	// Dir is the lab's directory. It goes with Close.
	Dir string

	mu      sync.Mutex
	closers []closer
	names   map[string]int
	procs   []*Process
}

type closer struct {
	name string
	fn   func(context.Context) error
}

// New makes a lab with an empty directory.
func New() (*Lab, error) {
	base := os.TempDir()
	if len(base) > 40 { // The sockets below it must stay short.
		base = "/tmp"
	}
	dir, err := os.MkdirTemp(base, "kiln-lab-")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	l := &Lab{Dir: dir, names: map[string]int{}}
	l.OnClose("directory", func(context.Context) error { return removeAll(dir) })
	return l, nil
}

// OnClose has fn called by Close, before all that was registered earlier.
func (l *Lab) OnClose(name string, fn func(context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, closer{name, fn})
}

// Close ends all parts, the last one first, and removes the directory. It may be
// called more than once.
func (l *Lab) Close() error {
	l.mu.Lock()
	closers := l.closers
	l.closers = nil
	l.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var errs []error
	for i := len(closers) - 1; i >= 0; i-- {
		if err := closers[i].fn(ctx); err != nil {
			errs = append(errs, fmt.Errorf("lab: closing %s: %w", closers[i].name, err))
		}
	}
	return errors.Join(errs...)
}

// Logs returns the end of the log of every part that was started, for failures.
// The registry's lines about single requests are left out.
func (l *Lab) Logs(lines int) string {
	l.mu.Lock()
	procs := append([]*Process(nil), l.procs...)
	l.mu.Unlock()
	var b strings.Builder
	for _, p := range procs {
		fmt.Fprintf(&b, "--- %s\n", p.Name)
		for line := range strings.Lines(p.Tail(lines)) {
			if !strings.Contains(line, `msg="response completed`) {
				b.WriteString(line)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// subdir makes a directory of the lab, named after a part: "buildkitd",
// "buildkitd2", and so on.
func (l *Lab) subdir(part string) (string, error) {
	l.mu.Lock()
	l.names[part]++
	n := l.names[part]
	l.mu.Unlock()
	name := part
	if n > 1 {
		name = fmt.Sprintf("%s%d", part, n)
	}
	dir := filepath.Join(l.Dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	return dir, nil
}

// poll calls check until it returns nil, and then returns nil. It ends early with
// an error when ctx ends or p, if not nil, does.
func poll(ctx context.Context, p *Process, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var done <-chan struct{}
	tail := func() string { return "" }
	if p != nil {
		done = p.Done()
		tail = func() string { return "\n" + p.Tail(30) }
	}
	for {
		try, stop := context.WithTimeout(ctx, 5*time.Second)
		err := check(try)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("lab: %s: it ended: %w%s", what, p.exitError(), tail())
		case <-ctx.Done():
			return fmt.Errorf("lab: %s: %w (last: %w)%s", what, ctx.Err(), err, tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
