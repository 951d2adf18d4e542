package enforce_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/lease"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// slow is a state that takes a minute for its leases, which each batch asks for.
type slow struct{ enforce.State }

func (s slow) Leases(ctx context.Context, now time.Time) (lease.Set, error) {
	time.Sleep(time.Minute)
	return s.State.Leases(ctx, now)
}

// A backlog of manifests leaves half of the time of a run for blobs: bytes are freed before it is done.
func TestRun_TimeBudgetIsForBlobsToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		info, err := os.Stat(d.root)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(info.ModTime())) // to the time that files have
		old := ago(30)
		const backlog = 210 // two batches
		for i := range backlog {
			d.image(fmt.Sprint("old/", i%10), old, fmt.Sprint("v", i))
		}
		d.image("kept", time.Now(), "v1")
		d.blob("kept", "garbage", old)
		e, _ := d.engine(keeps("**"))
		e.State = slow{e.State}
		// Inodes were changed just now: blobs are two days old.
		e.Now = func() time.Time { return time.Now().Add(2 * day) }
		r, err := e.RunOnce(t.Context(), enforce.Order{Trigger: run.Demand, Force: true, All: true, Budget: &policy.Budget{Time: 3 * time.Minute}}, nil)
		if err != nil || r.State != run.Partial || r.Removed.Manifests == 0 || r.Removed.Manifests == backlog || r.Removed.Bytes == 0 {
			t.Errorf("%s: removed %+v, %v, %v", r.State, r.Removed, r.Err, err)
		}
	})
}
