// Package renewal renews what lasts only for a while, such as leases, until it is not
// needed any more.
package renewal

import (
	"context"
	"sync"
	"time"
)

// Keep calls renew again and again, at that interval, also when ctx is cancelled, and
// returns what ends it and waits for the call under way.
func Keep(ctx context.Context, every time.Duration, renew func(ctx context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				renew(ctx)
			}
		}
	})
	return func() {
		cancel()
		running.Wait()
	}
}
