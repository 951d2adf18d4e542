package enforce_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// A run that nobody has asked for, and that would remove more than its share, removes nothing; the
// plan that it has made can be carried out.
func TestRun_MoreThanItsShareWaitsForApproval(t *testing.T) {
	stale := func(n int) (disk, *enforce.Engine) {
		d := newDisk(t)
		for i := range 4 {
			at := time.Now()
			if i < n {
				at = ago(30)
			}
			d.image("app", at, fmt.Sprint("v", i))
		}
		e, _ := d.engine(keeps("**"))
		e.MaxShare = 50
		return d, e
	}
	for name, c := range map[string]struct {
		order   enforce.Order
		stale   int
		removes int64
	}{
		"the schedule, half":               {enforce.Order{Trigger: run.Schedule, All: true}, 2, 2},
		"the schedule, more than half":     {enforce.Order{Trigger: run.Schedule, All: true}, 3, 0},
		"the schedule, everything":         {enforce.Order{Trigger: run.Schedule, All: true}, 4, 0},
		"low disk":                         {enforce.Order{Trigger: run.LowDisk, All: true}, 3, 0},
		"a timer":                          {enforce.Order{Trigger: run.Once}, 3, 0},
		"a person at the command line":     {enforce.Order{Trigger: run.Once, All: true}, 3, 3},
		"a person who asks the janitor to": {enforce.Order{Trigger: run.Demand}, 3, 3},
	} {
		t.Run(name, func(t *testing.T) {
			_, e := stale(c.stale)
			c.order.Force = true
			r, err := e.RunOnce(t.Context(), c.order, nil)
			braked := fault.ReasonOf(r.Err) == "APPROVAL_NEEDED" && r.State == run.Failed
			if err != nil || r.Removed.Manifests != c.removes || braked != (c.removes == 0) {
				t.Fatalf("%+v, %v", r, err)
			}
			if !braked {
				return
			}
			r, err = e.RunOnce(t.Context(), enforce.Order{Trigger: run.Demand, PlanDigest: r.PlanDigest, Force: true, All: true}, nil)
			if err != nil || r.State != run.Succeeded || r.Removed.Manifests != int64(c.stale) {
				t.Errorf("the plan was carried out as %+v, %v", r, err)
			}
		})
	}
}

// A run that is taken up waits as well, unless somebody had asked for it.
func TestTakeUp_MoreThanItsShareWaitsForApproval(t *testing.T) {
	d := newDisk(t)
	digest := d.image("app", ago(30), "v1")
	e, store := d.engine(keeps("**"))
	e.MaxShare = 50
	d.stopped(e, "stopped")
	enforce.NewSchedule(e, enforce.Timetable{}).TakeUp(t.Context())
	r, err := store.RunOf(t.Context(), "stopped")
	if err != nil || r.State != run.Failed || !d.has("app", digest) {
		t.Errorf("%+v, %v", r, err)
	}
}

// A budget spreads what a policy removes over many runs, and does not make it less.
func TestRun_BudgetDoesNotHideAShare(t *testing.T) {
	d := newDisk(t)
	for i := range 4 {
		d.image("app", ago(30), fmt.Sprint("v", i))
	}
	p, one := keeps("**"), int64(1)
	p.Budget.Manifests = &one
	e, _ := d.engine(p)
	e.MaxShare = 50
	for range 3 {
		r, err := e.RunOnce(t.Context(), enforce.Order{Trigger: run.Schedule, All: true, Force: true}, nil)
		if err != nil || fault.ReasonOf(r.Err) != "APPROVAL_NEEDED" || r.Removed.Manifests > 0 {
			t.Errorf("%d removed, %v, %v", r.Removed.Manifests, r.Err, err)
		}
	}
}

// A run of a timer says what can be done without a janitor that could be asked.
func TestRun_TimerSaysHowToApprove(t *testing.T) {
	d := newDisk(t)
	d.image("app", ago(30), "v1")
	d.image("app", ago(30), "v2")
	d.image("app", time.Now(), "v3")
	e, _ := d.engine(keeps("**"))
	e.MaxShare = 50
	r, err := e.RunOnce(t.Context(), enforce.Order{Trigger: run.Once, Force: true}, nil)
	if refused, is := errors.AsType[*fault.Error](r.Err); !is || !strings.Contains(refused.Remedy, "--force-all") {
		t.Errorf("%+v, %v", r.Err, err)
	}
}
