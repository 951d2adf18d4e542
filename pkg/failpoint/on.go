//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Hit kills the process if a test wants it to die here.
func Hit(name Name) {
	t := wanted()
	if name == t.name && t.left.Add(-1) == 0 {
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		select {} // No instruction of ours after the signal.
	}
}

// target is the place to die at, and how often it is still to be hit.
type target struct {
	name Name
	left atomic.Int64
}

// wanted is the process's, as its environment is. A process that was asked for
// what it cannot do says so by a panic: the test must not take it for alive.
var wanted = sync.OnceValue(func() *target {
	name, count, counted := strings.Cut(os.Getenv("KILN_FAILPOINT"), ":")
	t := &target{name: Name(name)}
	t.left.Store(1)
	if counted {
		n, err := strconv.ParseInt(count, 10, 64)
		if err != nil || n < 1 {
			panic(fmt.Sprintf("KILN_FAILPOINT: %q is no count of hits", count))
		}
		t.left.Store(n)
	}
	return t
})
