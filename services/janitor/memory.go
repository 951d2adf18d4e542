package janitor

import (
	"os"
	"runtime/debug"
	"sync/atomic"
)

// How the garbage collector weighs memory against time. A look at a large registry makes
// much garbage and keeps a few hundred bytes of each blob: to collect seldom, and more
// often near a limit that a registry of its size stays below, is a sixth of the time
// without more memory.
const (
	gcPercent   = 400
	leastMemory = 300 << 20 // bytes
	perBlob     = 300       // bytes
)

// tuned is that the process is the janitor's own: its collector is nobody else's.
var tuned atomic.Bool

// tuneMemory sets that for a process that is a janitor and nothing else, unless the
// environment says otherwise.
func tuneMemory() {
	tuned.Store(true)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	makeRoom(0)
}

// makeRoom sets the soft limit for a registry of so many blobs.
func makeRoom(blobs int) {
	if tuned.Load() && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(max(leastMemory, int64(blobs)*perBlob))
	}
}
