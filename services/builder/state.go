package builder

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

// state is the builder's own directory, of which it is the only user.
type state struct{ dir string }

func (s state) database() string  { return filepath.Join(s.dir, "builds.db") }
func (s state) contexts() string  { return filepath.Join(s.dir, "contexts") }
func (s state) artifacts() string { return filepath.Join(s.dir, "artifacts") }

// openState makes the directory if need be, for this user's eyes only, and locks
// it until the stack is closed.
func openState(dir string, undo *lifecycle.Stack) (state, error) {
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return state{}, fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE",
			fmt.Sprintf("state_dir %s cannot be made", dir), "name a directory with state_dir that the builder's user may write to")
	}
	lock, err := filelock.TryLock(filepath.Join(dir, "lock"))
	if errors.Is(err, filelock.ErrLocked) {
		return state{}, fault.New(fault.FailedPrecondition, "WRONG_STATE", fmt.Sprintf("state_dir %s is in use by another builder", dir),
			"stop that one, or give this one a state_dir of its own")
	}
	if err != nil {
		return state{}, fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE",
			fmt.Sprintf("state_dir %s cannot be used", dir), "name a directory with state_dir that the builder's user may write to")
	}
	undo.Push("lock of the state directory", func(context.Context) error { return lock.Close() })
	return state{dir}, nil
}

// defaultStateDir is /var/lib/kiln/builder for root, else below the user's own
// state directory.
func defaultStateDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/kiln/builder"
	}
	if base := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "kiln", "builder")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprintf("kiln-builder-%d", os.Geteuid()))
	}
	return filepath.Join(home, ".local", "state", "kiln", "builder")
}
