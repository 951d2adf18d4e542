package builder

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How the garbage collector weighs memory against time. What a builder keeps is small, and
// most of what it reads is passed on: to collect seldom leaves the processor to builds.
// Near the soft limit it collects more often, and gives memory back to the system at once,
// which it else does late: after a burst of requests, half of what is resident is unused.
const (
	gcPercent  = 400
	leastLimit = 320 << 20 // bytes
	// limitEvery is how often the limit is set anew.
	limitEvery = 10 * time.Second
)

// tuneMemory sets that for a process that is a builder and nothing else, unless GOGC and
// GOMEMLIMIT in the environment say otherwise. Until ctx ends the soft limit is leastLimit,
// or twice what is in use where that is more, so that the collector never runs all the time.
func tuneMemory(ctx context.Context) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetMemoryLimit(leastLimit)
	go func() {
		tick := time.NewTicker(limitEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				debug.SetMemoryLimit(max(leastLimit, 2*inUse()))
			case <-ctx.Done():
				return
			}
		}
	}()
}

// inUse returns what the last collection found in use, and what stacks take, in bytes.
func inUse() (total int64) {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(samples)
	for _, s := range samples {
		if s.Value.Kind() == metrics.KindUint64 {
			total += int64(s.Value.Uint64()) //nolint:gosec // far below
		}
	}
	return total
}
