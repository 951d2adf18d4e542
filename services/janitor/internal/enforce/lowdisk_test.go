package enforce_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// A disk that is nearly full has a run start at once, before the timetable has one; while that frees
// nothing, runs are ever further apart, and one line tells of them.
func TestSchedule_FullDiskStartsRunsEverLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t)
		d.image("app", time.Now(), "v1")
		e, store := d.engine(keeps("**"))
		timetable, err := enforce.NewTimetable("@yearly", "UTC", 0)
		if err != nil {
			t.Fatal(err)
		}
		var free atomic.Int64
		free.Store(50)
		s := enforce.NewSchedule(e, timetable)
		s.LowDisk = enforce.LowDisk{Percent: 5, Disk: func() (int64, int64, error) { return 100, free.Load(), nil }}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		runs := func() (n int64) {
			t.Helper()
			all, err := store.Runs(t.Context(), 100, time.Time{}, "")
			if err != nil || len(all) > 1 || len(all) == 1 && all[0].Trigger != run.LowDisk {
				t.Fatalf("%+v, %v", all, err)
			}
			for _, r := range all {
				n += 1 + r.Folded
			}
			return n
		}
		time.Sleep(time.Hour)
		if n := runs(); n != 0 {
			t.Errorf("with room %d runs", n)
		}
		free.Store(4)
		time.Sleep(time.Minute)
		if n := runs(); n != 1 {
			t.Errorf("a minute after the disk was full %d runs", n)
		}
		time.Sleep(24 * time.Hour)
		if n := runs(); n < 5 || n > 12 {
			t.Errorf("a day after the disk was full %d runs", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
