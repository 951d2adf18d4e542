package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
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

// A service that comes to a host whose clock is wrong already has seen no time before. The
// daemon's and the registry's clocks tell it so: no service removes anything.
func TestClock_WrongFromTheBeginning(t *testing.T) {
	wrong := []string{"KILN_CLOCK_JUMP=2160h"}
	s := ownStack(t, lab.StackOptions{})
	ctx := labtest.Context(t, 3*time.Minute)
	s.succeed(t, dockerfile("FROM scratch\nCOPY <<EOF /x\n"+unique()+"\nEOF\n"))
	time.Sleep(1200 * time.Millisecond) // what was used in the last second counts as in use

	m := startCacheManagerWith(t, s.lab, manual(), lab.ServiceOptions{Clock: 1, Env: wrong}, s.Buildkitd)
	err := m.prune(ctx, &cachemanagerv1.PruneRequest{Force: true, ForceAll: true}).err
	refused(t, err, codes.FailedPrecondition, "CLOCK_JUMPED", "")
	if want := `it is 2160h0m0s ahead of the clock of buildkitd "a"`; !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
	j := keeper(t, s.lab, s.Registry, 1, nil, lab.ServiceOptions{Clock: 1, Env: wrong, Unhealthy: true})
	_, err = j.tryRun(ctx, &janitorv1.RunRequest{Force: true})
	refused(t, err, codes.FailedPrecondition, "CLOCK_JUMPED", "")
	if want := "ahead of the clock of registry " + s.Registry.Addr; !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
	b := labtest.Must(s.lab.StartBuilder(ctx, lab.BuilderConfig(&configv1.BuilderConfig{
		Retention: &configv1.RetentionConfig{BuildAge: durationpb.New(time.Second), Interval: durationpb.New(100 * time.Millisecond)},
	}, s.Buildkitd.Addr, s.Registry.Addr), lab.ServiceOptions{Clock: 1, Env: wrong}))(t)
	api := labtest.Must(dial(s.lab, b.Addr))(t)
	started := labtest.Must(api.StartBuild(ctx, &builderv1.StartBuildRequest{Spec: dockerfile("FROM scratch\nCOPY <<EOF /x\nEOF\n")}))(t)
	labtest.Eventually(t, time.Minute, "the build ends", func() bool {
		return labtest.Must(api.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: started.GetBuild().GetId()}))(t).GetBuild().GetEndTime() != nil
	})
	time.Sleep(2 * time.Second)
	if _, err := api.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: started.GetBuild().GetId()}); err != nil {
		t.Errorf("the build is forgotten while the daemon's clock says that it is new: %v", err)
	}
	if jumped := metric(t, b, "kiln_clock_jumped"); jumped != "1" {
		t.Errorf("kiln_clock_jumped of the builder is %q", jumped)
	}
}
