package state_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// Runs that did nothing, one after the other and for the same reason, are one in the list, which says
// how many they were; what removed something, or was asked for, stays.
func TestFinishRun_FoldsRunsThatDidNothing(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	n := 0
	end := func(trigger run.Trigger, state run.State, why string, removed int64) {
		t.Helper()
		n++
		at := now.Add(time.Duration(n) * time.Minute)
		r := run.Run{ID: fmt.Sprint(n), State: run.Running, Trigger: trigger, Started: at, Reach: run.Storage}
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := s.StartRun(t.Context(), r)
		check(err)
		r.State, r.Ended, r.Removed = state, at.Add(time.Second), plan.Amount{Manifests: removed}
		if why != "" {
			r.Err = fault.New(fault.Unavailable, "REGISTRY_UNAVAILABLE", why, "start it")
		}
		check(s.FinishRun(t.Context(), r))
	}
	end(run.Schedule, run.Succeeded, "", 3)
	for range 50 {
		end(run.Schedule, run.Succeeded, "", 0)
	}
	for range 700 {
		end(run.LowDisk, run.Failed, "the registry is away", 0)
	}
	end(run.Demand, run.Succeeded, "", 0)
	end(run.Demand, run.Succeeded, "", 0)
	end(run.Schedule, run.Failed, "the registry is away", 0)
	end(run.Schedule, run.Failed, "the storage is away", 0)
	got := ""
	for _, r := range must(s.Runs(t.Context(), 100, time.Time{}, ""))(t) {
		got += fmt.Sprintf("%s %s %d+%d\n", r.Trigger, r.State, r.Removed.Manifests, r.Folded)
	}
	want := "SCHEDULE FAILED 0+0\nSCHEDULE FAILED 0+0\nDEMAND SUCCEEDED 0+0\nDEMAND SUCCEEDED 0+0\nLOW_DISK FAILED 0+699\nSCHEDULE SUCCEEDED 0+49\nSCHEDULE SUCCEEDED 3+0\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// A run that found manifests which are not whole stays in the list when the next one finds none, or
// others.
func TestFinishRun_KeepsWhatRunsFound(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	for i, broken := range []int64{0, 3, 3, 0} {
		r := run.Run{ID: fmt.Sprint(i), State: run.Running, Trigger: run.Schedule, Started: now.Add(time.Duration(i) * time.Hour), Reach: run.Storage}
		if _, _, err := s.StartRun(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		r.State, r.Ended, r.Verified, r.Broken = run.Succeeded, r.Started.Add(time.Second), 10, broken
		if err := s.FinishRun(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	got := ""
	for _, r := range must(s.Runs(t.Context(), 100, time.Time{}, ""))(t) {
		got += fmt.Sprintf("%d+%d ", r.Broken, r.Folded)
	}
	if got != "0+0 3+1 0+0 " {
		t.Errorf("got %s", got)
	}
}
