package enforce

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// The size pass must not have a keep duration: that would protect young records
// from the bound on bytes.
func TestPasses(t *testing.T) {
	got := Policy{KeepAge: 48 * time.Hour, KeepBytes: 1e11}.Passes()
	want := []Pass{
		{Reason: Age, Limits: Limits{KeepDuration: 48 * time.Hour}},
		{Reason: Size, Limits: Limits{MaxUsedBytes: 1e11}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestStatusOf(t *testing.T) {
	away1 := fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE", "away", "")
	tests := []struct {
		err  error
		want status
	}{
		{nil, kept},
		{away1, away},
		{fmt.Errorf("pruning by age: %w", away1), away},
		{errors.New("strange"), failed},
		{context.Canceled, failed},
	}
	for _, test := range tests {
		if got := statusOf(test.err); got != test.want {
			t.Errorf("%v: %d", test.err, got)
		}
	}
}

func TestPause(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	run := func(took time.Duration) Run { return Run{Started: start, Ended: start.Add(took)} }
	tests := []struct {
		name     string
		run      Run
		now      status
		interval time.Duration
		want     time.Duration
	}{
		{"from start to start", run(2 * time.Minute), kept, 10 * time.Minute, 8 * time.Minute},
		{"longer than the interval", run(time.Hour), kept, 10 * time.Minute, 0},
		{"an error is not tried again at once", run(0), failed, 10 * time.Minute, 10 * time.Minute},
		{"away", run(time.Minute), away, 10 * time.Minute, awayRetry},
		{"away, with a short interval", run(0), away, time.Second, time.Second},
	}
	for _, test := range tests {
		if got := pause(test.run, test.now, test.interval); got != test.want {
			t.Errorf("%s: %s", test.name, got)
		}
	}
}

func TestRunTotalAndTypeCounts(t *testing.T) {
	run := Run{Freed: []Freed{{Reason: Age, Records: 2, Bytes: 10}, {Reason: Size, Records: 1, Bytes: 5}}}
	if records, bytes := run.Total(); records != 3 || bytes != 15 {
		t.Errorf("%d records, %d bytes", records, bytes)
	}
	if records, bytes := (Run{}).Total(); records != 0 || bytes != 0 {
		t.Errorf("%d records, %d bytes", records, bytes)
	}
	got := typeCounts(map[cache.Type]int64{cache.CacheMount: 1, cache.Regular: 2, cache.Internal: 0})
	if got != "regular=2,exec.cachemount=1" {
		t.Error(got)
	}
}
