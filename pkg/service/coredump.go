package service

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// NoCoreDumps keeps the memory of this process, in which secrets are, from core
// files and from other processes of the same user: neither /proc/<pid>/mem nor a
// debugger of theirs opens it, root's does. The size limit on core files alone
// would not do, for a kernel that pipes them to a program does not heed it; it is
// there for the child processes, which inherit it.
func NoCoreDumps() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keeping memory out of core files: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("limiting core files: %w", err)
	}
	return nil
}
