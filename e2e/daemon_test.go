package e2e_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// soon is within what time a caller must learn that buildkitd is gone.
const soon = 10 * time.Second

// A daemon that hangs, was stopped or was killed gives UNAVAILABLE soon, with
// what to check; once it is back, builds go on by themselves.
func TestUnavailableDaemon(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	build := func() *builderv1.BuildSpec { return dockerfile("FROM " + s.base + "\nRUN echo " + unique() + "\n") }
	s.succeed(t, build()) // So that connections are open and the last check went well.

	for name, tc := range map[string]struct{ away, back func() error }{
		"hangs":   {func() error { return s.Buildkitd.Pause() }, func() error { return s.Buildkitd.Resume() }},
		"stopped": {func() error { return s.Buildkitd.Stop(t.Context()) }, func() error { return s.Buildkitd.Start(t.Context()) }},
		"killed":  {func() error { return s.Buildkitd.Kill() }, func() error { return s.Buildkitd.Start(t.Context()) }},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tc.away(); err != nil {
				t.Fatal(err)
			}
			for _, when := range []string{"at once", "again"} {
				start := time.Now()
				unavailable(t, when, s.build(t, build()))
				if took := time.Since(start); took > soon {
					t.Errorf("%s: the caller learnt it after %s", when, took.Round(time.Millisecond))
				}
			}
			start := time.Now()
			out, err := lab.Exec(labtest.Context(t, time.Minute), lab.Command{
				Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{"--addr", "tcp://" + s.Builder.Addr, "debug", "workers"},
			})
			if err == nil || !strings.Contains(out.Stderr, "buildkitd") || time.Since(start) > soon {
				t.Errorf("through the gateway: %v after %s, want an error that says what is gone:\n%s", err, time.Since(start), out.Stderr)
			}
			if err := tc.back(); err != nil {
				t.Fatal(err)
			}
			labtest.Eventually(t, soon, "a build that succeeds again", func() bool {
				return s.build(t, build()).outcome.GetState() == builderv1.BuildState_BUILD_STATE_SUCCEEDED
			})
		})
	}
}

// unavailable checks that a build ended because of its daemon, whether before it
// was accepted or after.
func unavailable(t *testing.T, when string, r result) {
	t.Helper()
	st := r.outcome.GetError()
	if r.err != nil {
		st = status.Convert(r.err).Proto()
	}
	checkUnavailable(t, when, st)
}

func checkUnavailable(t *testing.T, when string, st *rpcstatus.Status) {
	t.Helper()
	info := detail[*errdetails.ErrorInfo](st)
	if st.GetCode() != int32(codes.Unavailable) || info.GetReason() != "DAEMON_UNAVAILABLE" ||
		!strings.Contains(info.GetMetadata()["remedy"], "buildkitd") {
		t.Errorf("%s: %v, want UNAVAILABLE with what to check", when, st)
	}
}

// The daemon dies in the middle of a build: the build fails as the daemon's fault,
// not the Dockerfile's, and the builder goes on.
func TestDaemonKilledDuringABuild(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	done := make(chan result, 1)
	go func() { done <- readBuild(labtest.Context(t, time.Minute), s.api, s.endless()) }()
	s.waitContainers(t, 1)
	if err := s.Buildkitd.Kill(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	unavailable(t, "killed", <-done)
	if took := time.Since(start); took > soon {
		t.Errorf("the caller learnt it after %s", took)
	}
	if err := s.Buildkitd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, soon, "a build that succeeds again", func() bool {
		return s.build(t, dockerfile("FROM "+s.base+"\nRUN true\n")).outcome.GetState() == builderv1.BuildState_BUILD_STATE_SUCCEEDED
	})
}

// However a caller goes away, its solve ends in the daemon: its process is gone,
// and the daemon knows of no build that runs.
func TestNoSolveIsLeftRunning(t *testing.T) {
	s := sharedStack(t)
	for name, start := range map[string]func(t *testing.T) (drop func()){
		"the Build call is dropped": func(t *testing.T) func() {
			ctx, cancel := context.WithCancel(t.Context())
			go readBuild(ctx, s.api, s.endless())
			return cancel
		},
		"the caller's connection breaks": func(t *testing.T) func() {
			proxy := labtest.Must(s.lab.StartProxy(s.Builder.Addr))(t)
			api := labtest.Must(dial(s.lab, proxy.Addr))(t)
			go readBuild(t.Context(), api, s.endless())
			return func() { _ = proxy.Close() }
		},
		"kiln build is killed": func(t *testing.T) func() {
			dir := s.dir(t, map[string]string{"Dockerfile": s.endlessText()})
			p := labtest.Must(labtest.New(t).Run(lab.Command{
				Name: "kiln-build", Path: labtest.Must(lab.Bin("kiln"))(t),
				Args: []string{"build", dir, dir, s.ref("killed"), "--builder", s.Builder.Addr, "--progress", "plain"},
			}))(t)
			return func() { _ = p.Kill() }
		},
		"kiln build is interrupted": func(t *testing.T) func() {
			dir := s.dir(t, map[string]string{"Dockerfile": s.endlessText()})
			p := labtest.Must(labtest.New(t).Run(lab.Command{
				Name: "kiln-build", Path: labtest.Must(lab.Bin("kiln"))(t),
				Args: []string{"build", dir, dir, s.ref("interrupted"), "--builder", s.Builder.Addr, "--progress", "plain"},
			}))(t)
			return func() {
				_ = p.Signal(syscall.SIGINT)
				labtest.Eventually(t, soon, "the end of kiln build", func() bool { return p.ExitCode() > 0 })
			}
		},
		"buildctl through the gateway is killed": func(t *testing.T) func() {
			dir := s.dir(t, map[string]string{"Dockerfile": s.endlessText()})
			p := labtest.Must(labtest.New(t).Run(buildctl(t, "tcp://"+s.Builder.Addr, dir)))(t)
			return func() { _ = p.Kill() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			drop := start(t)
			s.waitContainers(t, 1)
			if n := len(s.active(t)); n != 1 {
				t.Errorf("%d builds run in the daemon, want 1", n)
			}
			drop()
			s.waitContainers(t, 0)
			labtest.Eventually(t, soon, "no build that runs in the daemon", func() bool { return len(s.active(t)) == 0 })
			var last *builderv1.BuildRecord
			labtest.Eventually(t, soon, "the end of the record", func() bool {
				last = labtest.Must(s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{PageSize: 1}))(t).GetBuilds()[0]
				return last.GetEndTime() != nil
			})
			if last.GetState() != builderv1.BuildState_BUILD_STATE_CANCELLED {
				t.Errorf("the record says %s", last.GetState())
			}
		})
	}
}

// A builder that is stopped takes its solves with it, and ends within its grace.
func TestStoppedBuilderLeavesNoSolve(t *testing.T) {
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{
		Server: &configv1.ServerConfig{Limits: &configv1.LimitsConfig{ShutdownGrace: durationpb.New(time.Second)}},
	}})
	done := make(chan result, 1)
	go func() { done <- readBuild(labtest.Context(t, time.Minute), s.api, s.endless()) }()
	s.waitContainers(t, 1)
	start := time.Now()
	if err := s.Builder.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > soon {
		t.Errorf("it took %s to stop", took)
	}
	if code := s.Builder.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.waitContainers(t, 0)
	if r := <-done; r.err == nil && r.outcome.GetState() == builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		t.Errorf("%v", r.outcome)
	}
}

// A builder that is told to stop lets a build end that no call waits for, and
// begins no other in its slot: that one goes on when the builder is back.
func TestStoppedBuilderLetsDetachedBuildsEnd(t *testing.T) {
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{MaxRunningBuilds: 1}})
	spec := func() *builderv1.BuildSpec {
		return dockerfile("FROM " + s.base + "\nRUN echo begun " + unique() + "; sleep 4\n")
	}
	runs := s.start(t, spec(), "").GetId()
	s.running(t, runs, "begun")
	waits := s.start(t, spec(), "").GetId()
	start := time.Now()
	if err := s.Builder.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > soon {
		t.Errorf("it took %s to stop", took)
	}
	s.startAgain(t)
	s.ended(t, runs, builderv1.BuildState_BUILD_STATE_SUCCEEDED)
	s.ended(t, waits, builderv1.BuildState_BUILD_STATE_SUCCEEDED)
	if rec := s.get(t, waits); rec.GetAttempt() != 1 {
		t.Errorf("the build that waited needed attempt %d", rec.GetAttempt())
	}
}

// A build that takes longer than it asked for ends as TIMED_OUT.
func TestTimeout(t *testing.T) {
	s := sharedStack(t)
	spec := s.endless()
	spec.Timeout = durationpb.New(2 * time.Second)
	r := s.build(t, spec)
	if r.err != nil || r.outcome.GetState() != builderv1.BuildState_BUILD_STATE_TIMED_OUT {
		t.Errorf("%v, %v", r.err, r.outcome)
	}
	if r.outcome.GetError().GetCode() != int32(codes.DeadlineExceeded) {
		t.Errorf("error %v", r.outcome.GetError())
	}
	s.waitContainers(t, 0)
}

// endlessText is a Dockerfile whose RUN never ends.
func (s *stack) endlessText() string {
	return "FROM " + s.base + "\nRUN echo begun " + unique() + "; sleep 3600\n"
}

func (s *stack) endless() *builderv1.BuildSpec { return dockerfile(s.endlessText()) }

// waitContainers waits until n RUN steps are running in the daemon.
func (s *stack) waitContainers(t *testing.T, n int) {
	t.Helper()
	labtest.Eventually(t, 2*soon, "the right number of running RUN steps", func() bool {
		return len(labtest.Must(lab.Containers(s.Buildkitd.Dir))(t)) == n
	})
}

// active asks the daemon itself for the builds that it is running.
func (s *stack) active(t *testing.T) []string {
	t.Helper()
	ctx := labtest.Context(t, 10*time.Second)
	c := labtest.Must(client.New(ctx, s.Buildkitd.Addr))(t)
	defer func() { _ = c.Close() }()
	stream := labtest.Must(c.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{ActiveOnly: true, EarlyExit: true}))(t)
	var refs []string
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return refs
		}
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, event.GetRecord().GetRef())
	}
}

// buildctl is an unmodified buildctl that builds a directory.
func buildctl(t *testing.T, addr, dir string, args ...string) lab.Command {
	t.Helper()
	return lab.Command{
		Name: "buildctl", Path: labtest.Must(lab.Bin("buildctl"))(t),
		Args: append([]string{
			"--addr", addr, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
			"--local", "context=" + dir, "--local", "dockerfile=" + dir,
		}, args...),
	}
}
