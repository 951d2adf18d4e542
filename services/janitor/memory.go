package janitor

import (
	"os"
	"runtime/debug"
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

// tuneMemory sets that, unless the environment says otherwise.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	makeRoom(0)
}

// makeRoom sets the soft limit for a registry of so many blobs.
func makeRoom(blobs int) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(max(leastMemory, int64(blobs)*perBlob))
	}
}
