package enforce_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/state"
)

// fullDisk is a cache on a disk that something else fills.
type fullDisk struct {
	*memory
	free atomic.Int64
}

func newFullDisk() *fullDisk {
	d := &fullDisk{memory: newMemory("d")}
	d.free.Store(1)
	return d
}

func (d *fullDisk) Disk() (*cache.Disk, error) {
	return &cache.Disk{TotalBytes: 100, FreeBytes: d.free.Load()}, nil
}

func (d *fullDisk) List(ctx context.Context) (cache.Listing, error) {
	l, err := d.memory.List(ctx)
	l.Disk, _ = d.Disk()
	return l, err
}

// runsOf runs a schedule for a time that passes at once, and returns the runs that are kept.
func runsOf(t *testing.T, lasts time.Duration, p policy.Policy, caches ...enforce.Cache) (all []run.Run) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "s.db")
	synctest.Test(t, func(t *testing.T) {
		e, s := engineAt(t, file, caches...)
		if err := s.Configure(t.Context(), p, time.Now()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), lasts-time.Minute) // not in the middle of a run
		defer cancel()
		if err := enforce.NewSchedule(e, 10*time.Minute).Run(ctx); err != nil {
			t.Error(err)
		}
		var err error
		if all, err = s.Runs(t.Context(), 1000, time.Time{}, ""); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return all
}

func count(all []run.Run, trigger run.Trigger) (rows, runs int64) {
	for _, r := range all {
		if r.Trigger == trigger {
			rows, runs = rows+1, runs+1+r.Folded
		}
	}
	return rows, runs
}

func withRoom() policy.Policy {
	p := policy.Default(time.Hour, 1<<40)
	p.Rules = append(p.Rules, policy.Rule{Name: "room", Keep: &policy.Keep{FreeDisk: &policy.FreeDisk{LowBytes: 10, HighBytes: 20}}})
	return p
}

func TestSchedule_BacksOffWhileTheDiskStaysFull(t *testing.T) {
	d := newFullDisk()
	all := runsOf(t, 4*time.Hour, withRoom(), d)
	if rows, runs := count(all, run.FreeDisk); rows != 1 || runs < 20 || runs > 40 {
		t.Errorf("%d runs for free disk in four hours, in %d rows", runs, rows)
	}
	if rows, runs := count(all, run.Schedule); rows != 1 || runs < 23 || runs > 25 {
		t.Errorf("%d runs of the schedule in four hours, in %d rows", runs, rows)
	}
	for _, r := range all {
		if r.FoldedSince.IsZero() || r.Started.Sub(r.FoldedSince) < 3*time.Hour {
			t.Errorf("the first of the folded runs started %s, the last %s", r.FoldedSince, r.Started)
		}
	}
}

func TestSchedule_RunsAtOnceWhenTheDiskFillsAgain(t *testing.T) {
	d := newFullDisk()
	file := filepath.Join(t.TempDir(), "s.db")
	synctest.Test(t, func(t *testing.T) {
		e, s := engineAt(t, file, d)
		if err := s.Configure(t.Context(), withRoom(), time.Now()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { _ = enforce.NewSchedule(e, 10*time.Minute).Run(ctx); close(done) }()
		step := func(free int64, lasts time.Duration) int64 {
			d.free.Store(free)
			time.Sleep(lasts)
			all, err := s.Runs(t.Context(), 100, time.Time{}, "")
			if err != nil {
				t.Error(err)
			}
			_, runs := count(all, run.FreeDisk)
			return runs
		}
		step(1, 2*time.Hour+5*time.Minute) // just after a run: the next one would come in minutes
		before := step(50, time.Minute)
		if after := step(1, 3*time.Second); after != before+1 {
			t.Errorf("%d runs before the disk filled again, %d three seconds later", before, after)
		}
		cancel()
		<-done
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A daemon that is away is tried again by itself: the others are not run on each time.
func TestSchedule_TriesWhatIsAwayAgainAlone(t *testing.T) {
	a, b := newMemory("a"), newMemory("b")
	b.busy = fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "away", "start it")
	all := runsOf(t, 4*time.Hour, policy.Default(time.Hour, 1<<40), a, b)
	if rows, runs := count(all, run.Schedule); rows != 1 || runs > 25 {
		t.Errorf("%d runs in four hours, in %d rows", runs, rows)
	}
	if a.lists > 60 {
		t.Errorf("the cache that is there was listed %d times in four hours", a.lists)
	}
}

func TestSchedule_KeepsRunsThatRemovedAmongFoldedOnes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "s.db")
	s, err := state.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	start := time.Now().Add(-time.Hour)
	add := func(i int, trigger run.Trigger, removed int64, failure error) {
		r := run.Run{ID: string(rune('a' + i)), State: run.Running, Trigger: trigger, Started: start.Add(time.Duration(i) * time.Minute)}
		if _, _, err := s.StartRun(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		r.State, r.Removed.Records, r.Ended, r.Err = run.Succeeded, removed, r.Started.Add(time.Second), failure
		if err := s.FinishRun(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	away := fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "away", "start it")
	for i, r := range []struct {
		trigger run.Trigger
		removed int64
		failure error
	}{
		{run.Schedule, 0, nil}, {run.Schedule, 0, nil}, {run.FreeDisk, 0, nil}, {run.Schedule, 0, nil}, {run.Schedule, 3, nil},
		{run.Schedule, 0, nil}, {run.Demand, 0, nil}, {run.Demand, 0, nil}, {run.Schedule, 0, away}, {run.Schedule, 0, away},
	} {
		add(i, r.trigger, r.removed, r.failure)
	}
	all, err := s.Runs(t.Context(), 100, time.Time{}, "")
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, r := range all {
		got += r.ID
	}
	if got != "jhgfedc" || all[5].Folded != 2 || !all[5].FoldedSince.Equal(start) || all[0].Folded != 1 {
		t.Errorf("%s are kept, %+v", got, all[5])
	}
}
