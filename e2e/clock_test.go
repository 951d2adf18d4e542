package e2e_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
)

// A clock that is set months ahead while the service is down has it remove nothing; an
// operator who confirms the new time has it go on. Time that has passed is no jump.
func TestClock_JumpRemovesNothing(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 3*time.Minute)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY data /data\n", "data": "content"})
	labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir)))(t)
	state := t.TempDir()
	start := func(moved time.Duration, env ...string) (cacheManager, func()) {
		cfg := manual()
		cfg.StateDir = state
		m := startCacheManagerWith(t, l, cfg, lab.ServiceOptions{Clock: moved, Env: env}, daemon)
		return m, func() {
			if err := m.Stop(ctx); err != nil {
				t.Error(err)
			}
		}
	}
	m, stop := start(time.Nanosecond)
	time.Sleep(1200 * time.Millisecond) // what was used in the last second counts as in use
	before := len(m.records(t))
	stop()
	m, stop = start(time.Nanosecond, "KILN_CLOCK_JUMP=2160h")
	order := &cachemanagerv1.PruneRequest{Force: true, ForceAll: true}
	refused(t, m.prune(ctx, order).err, codes.FailedPrecondition, "CLOCK_JUMPED", "")
	if jumped := metric(t, m.Service, "kiln_clock_jumped"); jumped != "1" {
		t.Errorf("kiln_clock_jumped is %q", jumped)
	}
	if after := len(m.records(t)); before == 0 || after != before {
		t.Errorf("%d records after a jump of the clock, %d before", after, before)
	}
	if err := os.WriteFile(filepath.Join(state, "clock.confirm"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if run := m.prune(ctx, order); run.err != nil || len(m.records(t)) >= before {
		t.Errorf("after the time was confirmed: %v, %d records", run.err, len(m.records(t)))
	}
	stop()
	m, _ = start(48*time.Hour, "KILN_CLOCK_JUMP=2160h")
	if jumped := metric(t, m.Service, "kiln_clock_jumped"); jumped != "0" {
		t.Errorf("after two days that have passed kiln_clock_jumped is %q", jumped)
	}
}
