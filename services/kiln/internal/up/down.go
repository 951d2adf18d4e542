package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/filelock"
	"github.com/kilnbuild/kiln/services/kiln/internal/profile"
)

// downGrace is how long a kiln up may take to end after it was told to hurry.
const downGrace = 15 * time.Second

// down ends the kiln up of a data directory and waits for its end.
func down(ctx context.Context, out io.Writer, dataDir string, timeout time.Duration) error {
	opts, err := Options{DataDir: dataDir}.complete()
	if err != nil {
		return err
	}
	pid, err := running(ctx, paths{root: opts.DataDir}.lock())
	if err != nil {
		return fault.Wrap(err, fault.FailedPrecondition, "", "cannot tell who uses "+opts.DataDir, "is it yours? else use sudo")
	}
	if pid == 0 {
		fmt.Fprintf(out, "no kiln up is running in %s\n", opts.DataDir)
		for _, other := range profile.Running() {
			fmt.Fprintf(out, "one is running in %s: kiln down --data-dir %[1]s\n", other.DataDir)
		}
		return nil
	}
	// A descriptor, not the number: that may belong to somebody else by then.
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kiln up (pid %d): %w", pid, err)
	}
	if err == nil {
		defer unix.Close(process)
		if err := end(ctx, process, pid, timeout); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "kiln up (pid %d) has stopped\n", pid)
	return nil
}

// end tells a process to end, tells it to hurry after the timeout, and waits.
func end(ctx context.Context, process, pid int, timeout time.Duration) error {
	for _, patience := range []time.Duration{timeout, downGrace} { // The second signal hurries.
		if err := unix.PidfdSendSignal(process, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fault.Wrap(err, fault.PermissionDenied, "", fmt.Sprintf("cannot stop kiln up (pid %d)", pid), "run it with sudo")
		}
		ended, err := awaitEnd(ctx, process, patience)
		if ended || err != nil {
			return err
		}
	}
	return fault.New(fault.DeadlineExceeded, "",
		fmt.Sprintf("kiln up (pid %d) has not stopped within %s", pid, timeout+downGrace),
		fmt.Sprintf("kill -9 %d ends it and its daemons", pid))
}

// awaitEnd says whether a process ends in time. Its descriptor becomes readable
// when it does.
func awaitEnd(ctx context.Context, process int, within time.Duration) (bool, error) {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, int(pollEvery.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, err
		}
		if n > 0 {
			return true, nil
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
	return false, nil
}

// running returns the process that holds a lock, 0 when none does.
func running(ctx context.Context, lock string) (int, error) {
	if _, err := os.Stat(lock); errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	for range 50 {
		file, err := filelock.TryLock(lock)
		if err == nil {
			return 0, file.Close()
		}
		if !errors.Is(err, filelock.ErrLocked) {
			return 0, err
		}
		if pid := holder(lock); pid != 0 {
			return pid, nil
		}
		// It has the lock, and writes its pid next.
		if err := pause(ctx, pollEvery); err != nil {
			return 0, err
		}
	}
	return 0, errors.New("its lock is held, and holds no pid")
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
