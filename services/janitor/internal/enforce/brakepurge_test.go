package enforce_test

import (
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// A run for a full disk that waits for an approval frees what was in quarantine for long enough.
func TestRun_PurgesWhileItWaitsForApproval(t *testing.T) {
	d := newDisk(t)
	d.image("app", ago(30), "v0")
	d.image("app", time.Now(), "v1")
	d.image("app", time.Now(), "v2")
	e, _ := d.engine(keeps("**"))
	e.MaxShare = 50
	r, err := e.RunOnce(t.Context(), enforce.Order{Trigger: run.Schedule, All: true, Force: true}, nil)
	if err != nil || r.Removed.Manifests != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	e.Now = func() time.Time { return time.Now().Add(20 * day) }
	r, err = e.RunOnce(t.Context(), enforce.Order{Trigger: run.LowDisk, All: true, Force: true}, nil)
	if err != nil || fault.ReasonOf(r.Err) != "APPROVAL_NEEDED" {
		t.Fatalf("%+v, %v", r, err)
	}
	left, err := e.Storage.Journals()
	for _, journal := range left {
		if len(journal.Entries) > 0 {
			t.Errorf("run %s has %d things in quarantine, whose time is over", journal.Head.Run, len(journal.Entries))
		}
	}
	if err != nil {
		t.Error(err)
	}
}
