package builder

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// The collector of garbage runs when the heap has doubled, and gives memory back to the
// system late: after a burst of requests, half of what is resident is unused. Near a soft
// limit it collects more often, and gives back at once.
const (
	leastLimit = 320 << 20 // bytes
	leastRoom  = 96 << 20
	// limitEvery is how often the limit is set anew.
	limitEvery = 5 * time.Second
)

// limitMemory keeps the soft limit of a process that is a builder and nothing else, unless
// GOMEMLIMIT in the environment says otherwise. Until ctx ends it is leastLimit, or so much
// more than is in use that the collector does not run all the time.
func limitMemory(ctx context.Context) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetMemoryLimit(leastLimit)
	lifecycle.Go(ctx, func(ctx context.Context) {
		tick := time.NewTicker(limitEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				debug.SetMemoryLimit(limitFor(inUse()))
			case <-ctx.Done():
				return
			}
		}
	})
}

// limitFor returns the soft limit where so many bytes are in use.
func limitFor(used int64) int64 { return max(leastLimit, used+leastRoom, used/4*5) }

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
