package enforce_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
	"github.com/kilnbuild/kiln/services/janitor/internal/storage"
)

// stopped has an engine plan, and leaves a run of that plan as a janitor does that is stopped before
// anything went.
func (d disk) stopped(e *enforce.Engine, id string) {
	d.t.Helper()
	made, err := e.Plan(d.t.Context(), enforce.Ask{})
	if err != nil || made.Removes.Manifests == 0 {
		d.t.Fatal(made.Plan, err)
	}
	order, err := json.Marshal(map[string]any{"trigger": run.Schedule, "policy_version": 1})
	if err != nil {
		d.t.Fatal(err)
	}
	q, err := storage.New(d.root).Begin(quarantine.Head{Run: id, Started: time.Now(), Keep: 2 * day, MaxBuildTime: time.Hour, Order: order})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, v := range made.Removals() {
		err = errors.Join(err, q.Note(quarantine.Line{Planned: &v}))
	}
	if err := errors.Join(err, q.Note(quarantine.Line{Ready: true}), q.Close()); err != nil {
		d.t.Fatal(err)
	}
}

func unfinished(t *testing.T, e *enforce.Engine) int {
	t.Helper()
	left, err := e.Unfinished()
	if err != nil {
		t.Fatal(err)
	}
	return len(left)
}

// Of the plan of a run that is taken up only that goes which the policy in force removes, too.
func TestTakeUp_ObeysThePolicyInForce(t *testing.T) {
	d := newDisk(t)
	protected, other := d.image("prod/app", ago(30), "v1"), d.image("test/app", ago(30), "v1")
	d.image("new/app", time.Now(), "v1")
	before := keeps("prod/**", "test/**")
	e, _ := d.engine(before)
	d.stopped(e, "stopped")
	e, _ = d.engine(protects(before, "prod/**"))
	enforce.NewSchedule(e, enforce.Timetable{}).TakeUp(t.Context())
	if !d.has("prod/app", protected) || d.has("test/app", other) || unfinished(t, e) > 0 {
		t.Errorf("the protected one is there: %v, the other one: %v, unfinished: %d", d.has("prod/app", protected), d.has("test/app", other), unfinished(t, e))
	}
}

// A run is not taken up while ages cannot be counted.
func TestTakeUp_WaitsForTheClock(t *testing.T) {
	d := newDisk(t)
	digest := d.image("app", ago(30), "v1")
	e, _ := d.engine(keeps("**"))
	d.stopped(e, "stopped")
	e.Clock = func(context.Context) error { return errors.New("the clock has jumped") }
	s := enforce.NewSchedule(e, enforce.Timetable{})
	if s.TakeUp(t.Context()); !d.has("app", digest) || unfinished(t, e) != 1 {
		t.Errorf("it is there: %v, unfinished: %d", d.has("app", digest), unfinished(t, e))
	}
	e.Clock = nil
	if s.TakeUp(t.Context()); d.has("app", digest) {
		t.Error("it was not taken up when the clock was right")
	}
}

// A run that is abandoned removes nothing more, is CANCELLED, and is not taken up again.
func TestAbandon(t *testing.T) {
	d := newDisk(t)
	digest := d.image("app", ago(30), "v1")
	e, store := d.engine(keeps("**"))
	d.stopped(e, "stopped")
	if _, _, err := store.StartRun(t.Context(), run.Run{ID: "stopped", State: run.Interrupted, Trigger: run.Schedule, Started: time.Now(), Reach: run.Storage}); err != nil {
		t.Fatal(err)
	}
	if was, err := e.Abandon(t.Context(), "another"); was || err != nil {
		t.Errorf("another one: %v, %v", was, err)
	}
	if was, err := e.Abandon(t.Context(), "stopped"); !was || err != nil {
		t.Errorf("%v, %v", was, err)
	}
	enforce.NewSchedule(e, enforce.Timetable{}).TakeUp(t.Context())
	if r, err := store.RunOf(t.Context(), "stopped"); err != nil || r.State != run.Cancelled || r.Ended.IsZero() || !d.has("app", digest) {
		t.Errorf("%+v, %v, it is there: %v", r, err, d.has("app", digest))
	}
}

// A plan that was made before the policy was changed removes nothing that the new one protects.
func TestRun_PlanOfAnOlderPolicyObeysTheOneInForce(t *testing.T) {
	d := newDisk(t)
	protected, other := d.image("prod/app", ago(30), "v1"), d.image("test/app", ago(30), "v1")
	e, store := d.engine(keeps("**"))
	made, err := e.Plan(t.Context(), enforce.Ask{})
	if err != nil || made.Removes.Manifests != 2 {
		t.Fatal(made.Plan, err)
	}
	if _, err := store.SetPolicy(t.Context(), protects(keeps("**"), "prod/**"), 0); err != nil {
		t.Fatal(err)
	}
	r, err := e.RunOnce(t.Context(), enforce.Order{Trigger: run.Demand, PlanDigest: made.Digest, Force: true, All: true}, nil)
	if err != nil || !d.has("prod/app", protected) || d.has("test/app", other) || r.PolicyVersion != 2 {
		t.Errorf("%+v, %v, the protected one is there: %v", r, err, d.has("prod/app", protected))
	}
}

// The request id of a run that has carried its plan out is followed, though the plan is spent.
func TestStart_FollowsTheRunOfAPlanThatIsSpent(t *testing.T) {
	d := newDisk(t)
	d.image("app", ago(30), "v1")
	d.image("app", time.Now(), "v2")
	e, _ := d.engine(keeps("**"))
	made, err := e.Plan(t.Context(), enforce.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	order := enforce.Order{Trigger: run.Demand, PlanDigest: made.Digest, Force: true, RequestID: "once"}
	first, err := e.RunOnce(t.Context(), order, nil)
	if err != nil || first.State != run.Succeeded {
		t.Fatal(first, err)
	}
	_, err = e.Start(t.Context(), order, trace.SpanContext{})
	if known, is := errors.AsType[*enforce.ErrKnown](err); !is || known.Run.ID != first.ID {
		t.Errorf("%v", err)
	}
	order.RequestID = "another"
	_, err = e.Start(t.Context(), order, trace.SpanContext{})
	kind(t, err, fault.Aborted)
}
