package build_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// observed begins a build of the gateway, with what change sets of it.
func (r *rig) observed(t *testing.T, change func(*build.Observation)) error {
	t.Helper()
	o := build.Observation{ID: fmt.Sprintf("o%d", ids.Add(1)), Project: "web"}
	change(&o)
	ctx, observed, err := r.Observe(t.Context(), o)
	if err == nil {
		observed.End(ctx, nil, build.Result{})
	}
	return err
}

func TestObserve_RefusesWhatNoCallCanName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &pool{}, newMemory(), 1)
		defer r.stop(t)
		for name, change := range map[string]func(*build.Observation){
			"a long ref":         func(o *build.Observation) { o.ID = strings.Repeat("a", 129) },
			"a ref that is path": func(o *build.Observation) { o.ID = "../../x" },
			"a ref of two lines": func(o *build.Observation) { o.ID = "a\nb" },
			"a long name":        func(o *build.Observation) { o.Tags = []string{strings.Repeat("a", 513)} },
			"many names":         func(o *build.Observation) { o.Tags = make([]string, 1_500_000) },
		} {
			if err := r.observed(t, change); fault.KindOf(err) != fault.InvalidArgument {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name, change := range map[string]func(*build.Observation){
			"the longest ref":  func(o *build.Observation) { o.ID = strings.Repeat("a", 128) },
			"as many as fit":   func(o *build.Observation) { o.Tags = make([]string, 1024) },
			"the longest name": func(o *build.Observation) { o.Tags = []string{strings.Repeat("a", 512)} },
		} {
			if err := r.observed(t, change); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestObserve_CountsTheBytesOfARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &pool{}, newMemory(), 1)
		defer r.stop(t)
		if err := r.observed(t, func(o *build.Observation) { o.Bytes = 12345 }); err != nil {
			t.Fatal(err)
		}
		if got := r.Queue.(*line).entered; got.Bytes != 12345 {
			t.Errorf("entered the queue as %+v", got)
		}
	})
}

func TestObserved_TimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &pool{}, newMemory(), 1)
		defer r.stop(t)
		r.MaxBuildTime = time.Hour
		ctx, observed, err := r.Observe(t.Context(), build.Observation{ID: "long", Project: "web"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour) // waiting for a slot is not building
		if ctx.Err() != nil {
			t.Fatal("it ended while it waited")
		}
		begun := time.Now()
		observed.Begin("d1")
		<-ctx.Done()
		if took := time.Since(begun); took != time.Hour {
			t.Errorf("ended after %s", took)
		}
		observed.End(ctx, &build.Failure{Message: "canceled", Class: build.ByCancel}, build.Result{})
		if rec := r.final(t, "long", build.TimedOut); rec.Outcome.Failure.Reason != "TIMED_OUT" {
			t.Errorf("%+v", rec.Outcome.Failure)
		}
	})
}

// A daemon that hangs ends what it has not begun at once, and what it builds after a
// minute, as it does builds of the API.
func TestObserved_EndsWhenItsDaemonHangs(t *testing.T) {
	for name, begun := range map[string]bool{"before it begins": false, "while it builds": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pool{}
				r := newRig(t, p, newMemory(), 1)
				defer r.stop(t)
				ctx, observed, err := r.Observe(t.Context(), build.Observation{ID: "o", Project: "web"})
				if err != nil {
					t.Fatal(err)
				}
				observed.Begin("d1")
				least := time.Duration(0)
				if begun {
					observed.Event(build.StepEvent{Name: "one"})
					least = time.Minute
				}
				p.fail(fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "the daemon does not answer", "restart it"))
				hung := time.Now()
				<-ctx.Done()
				if took := time.Since(hung); took < least || took > least+time.Second {
					t.Errorf("ended after %s", took)
				}
				observed.End(ctx, &build.Failure{Message: "canceled", Class: build.ByCancel}, build.Result{})
				if rec := r.final(t, "o", build.Failed); rec.Outcome.Failure.Reason != "DAEMON_UNAVAILABLE" {
					t.Errorf("%+v", rec.Outcome.Failure)
				}
			})
		})
	}
}

func TestStart_RefusesMoreNamesThanARecordHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &pool{daemon: daemon(succeeds)}, newMemory(), 1)
		defer r.stop(t)
		sub := web()
		sub.Spec.Outputs = []build.Output{{Registry: &build.RegistryOutput{}}}
		for i := range 1025 {
			sub.Spec.Outputs[0].Registry.Tags = append(sub.Spec.Outputs[0].Registry.Tags, fmt.Sprint("a:", i))
		}
		if _, err := r.Start(t.Context(), sub); fault.KindOf(err) != fault.InvalidArgument {
			t.Error(err)
		}
	})
}

// A slot that a build acquires while it ends would be given back by nobody.
func TestResume_OfABuildThatHasEndedTakesNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &pool{}, newMemory(), 1)
		defer r.stop(t)
		_, observed, err := r.Observe(t.Context(), build.Observation{ID: "ends", Project: "web"})
		if err != nil {
			t.Fatal(err)
		}
		observed.Yield()
		observed.End(t.Context(), nil, build.Result{})
		if err := observed.Resume(t.Context()); err != nil {
			t.Error(err)
		}
		if free := r.Queue.(*line).free; free != 1 {
			t.Errorf("%d slots are free of 1", free)
		}
	})
}
