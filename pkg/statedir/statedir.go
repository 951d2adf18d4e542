// Package statedir gives each service a directory of its own for what it keeps.
package statedir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/filelock"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// Open makes the directory if need be, for this user's eyes only, and locks it until
// the stack is closed. The service, for people, is for example "builder". It returns
// the absolute path. A directory that another process has, or that cannot be made, is
// a FAILED_PRECONDITION fault.
func Open(dir, service string, undo *lifecycle.Stack) (string, error) {
	remedy := fmt.Sprintf("name a directory with state_dir that the %s's user may write to", service)
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE", fmt.Sprintf("state_dir %s cannot be made", dir), remedy)
	}
	lock, err := filelock.TryLock(filepath.Join(dir, "lock"))
	if errors.Is(err, filelock.ErrLocked) {
		return "", fault.New(fault.FailedPrecondition, "WRONG_STATE", fmt.Sprintf("state_dir %s is in use by another %s", dir, service),
			"stop that one, or give this one a state_dir of its own")
	}
	if err != nil {
		return "", fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE", fmt.Sprintf("state_dir %s cannot be used", dir), remedy)
	}
	undo.Push("lock of the state directory", func(context.Context) error { return lock.Close() })
	return dir, nil
}

// Default is /var/lib/kiln/<service> for root, else below the user's own state
// directory.
func Default(service string) string {
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/kiln", service)
	}
	if base := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "kiln", service)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprintf("kiln-%s-%d", service, os.Geteuid()))
	}
	return filepath.Join(home, ".local", "state", "kiln", service)
}
