package renewal_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/pkg/renewal"
)

// It renews until it is stopped, also when its context was cancelled.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		stop := renewal.Keep(ctx, time.Minute, func(ctx context.Context) {
			if ctx.Err() == nil {
				calls++
			}
		})
		cancel()
		time.Sleep(3*time.Minute + time.Second)
		stop()
		time.Sleep(time.Hour)
		if calls != 3 {
			t.Errorf("%d calls, want 3", calls)
		}
	})
}
