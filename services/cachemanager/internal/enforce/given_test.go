package enforce_test

import (
	"errors"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// A caller who lost the answer sends the same request again, and follows the run.
func TestGivenPlan_SameRequestIsTheSameRun(t *testing.T) {
	m := newMemory("d", old("a"))
	e, _ := engine(t, m)
	p, err := e.Plan(t.Context(), enforce.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	order := enforce.Order{Trigger: run.Demand, Force: true, PlanDigest: p.Digest, RequestID: "r"}
	first, _, err := told(t, e, order)
	if err != nil || first.PolicyVersion != p.PolicyVersion || p.PolicyVersion == 0 {
		t.Fatalf("%v, %+v", err, first)
	}
	_, _, err = told(t, e, order)
	if known, ok := errors.AsType[*enforce.ErrKnown](err); !ok || known.Run.ID != first.ID {
		t.Errorf("%v", err)
	}
	order.RequestID = ""
	if _, _, err := told(t, e, order); fault.KindOf(err) != fault.Aborted {
		t.Errorf("carried out twice: %v", err)
	}
}

// A plan whose run cannot begin can be carried out later.
func TestGivenPlan_IsNotSpentWhileTheCacheIsBusy(t *testing.T) {
	m := newMemory("d", old("a"))
	e, _ := engine(t, m)
	p, err := e.Plan(t.Context(), enforce.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	order := enforce.Order{Trigger: run.Demand, PlanDigest: p.Digest}
	if r, said, err := told(t, e, order); err != nil || !r.Dry || said != "remove a(age)" {
		t.Errorf("a dry run: %v, %s", err, said)
	}
	order.Force = true
	m.busy = fault.New(fault.AlreadyExists, "ALREADY_EXISTS", "another's", "ask that one")
	if _, _, err := told(t, e, order); fault.KindOf(err) != fault.AlreadyExists {
		t.Errorf("busy: %v", err)
	}
	m.busy = nil
	if _, said, err := told(t, e, order); err != nil || said != "remove a(age)" {
		t.Errorf("%v, %s", err, said)
	}
}
