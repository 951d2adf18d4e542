package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// errLocked says that another process holds a lock.
var errLocked = errors.New("locked")

// lockFile takes the lock of a data directory, without waiting. It is the
// kernel's, and goes when this process does, however it ends.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return file, nil
}

// claim makes this process the one that uses the data directory, until the file
// it returns is closed.
func claim(ctx context.Context, p paths) (*os.File, error) {
	file, err := lockFile(p.lock())
	// Not at once: kiln down holds it for a moment to see whether anybody does.
	for tries := 0; errors.Is(err, errLocked) && tries < 4 && pause(ctx, pollEvery) == nil; tries++ {
		file, err = lockFile(p.lock())
	}
	if errors.Is(err, errLocked) {
		return nil, fault.New(fault.FailedPrecondition, "",
			fmt.Sprintf("data directory %s is in use by kiln up%s", p.root, pidText(holder(p.lock()))),
			"use --data-dir for another one, or stop that one with kiln down")
	}
	if err != nil {
		return nil, err
	}
	if err := errors.Join(file.Truncate(0), writeAt(file, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// release gives the lock back, without a pid that somebody could mistake.
func release(lock *os.File) {
	_ = lock.Truncate(0)
	lock.Close()
}

func writeAt(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text), 0)
	return err
}

// holder is the process id in a lock file, 0 when there is none. Meaningful only
// while the lock is held.
func holder(path string) int {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return 0
	}
	return pid
}

func pidText(pid int) string {
	if pid == 0 {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", pid)
}
