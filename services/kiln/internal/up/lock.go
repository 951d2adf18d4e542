package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/filelock"
)

// claim makes this process the one that uses the data directory, until the file
// it returns is closed.
func claim(ctx context.Context, p paths) (*os.File, error) {
	file, err := filelock.TryLock(p.lock())
	// Not at once: kiln down holds it for a moment to see whether anybody does.
	for tries := 0; errors.Is(err, filelock.ErrLocked) && tries < 4 && pause(ctx, pollEvery) == nil; tries++ {
		file, err = filelock.TryLock(p.lock())
	}
	if errors.Is(err, filelock.ErrLocked) {
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
