package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// clients are the programs that build through the gateway, by name: each builds a
// directory and pushes it to ref.
func (s *stack) clients(t *testing.T) map[string]func(dir, ref string) lab.Command {
	t.Helper()
	buildx := s.buildx(t)
	return map[string]func(dir, ref string) lab.Command{
		"buildctl": func(dir, ref string) lab.Command {
			return buildctl(t, "tcp://"+s.Builder.Addr, dir, "--output", "type=image,push=true,name="+ref)
		},
		"buildx": func(dir, ref string) lab.Command {
			return buildx("build", "--builder", "kiln", "--progress", "plain", "--push", "-t", ref, dir)
		},
		"kiln build": func(dir, ref string) lab.Command {
			return lab.Command{
				Name: "kiln-build", Path: labtest.Must(lab.Bin("kiln"))(t),
				Args: []string{"build", dir, dir, ref, "--builder", s.Builder.Addr, "--push", "--progress", "plain"},
			}
		},
	}
}

// buildx makes commands of an unmodified docker buildx whose builder "kiln" is the
// gateway.
func (s *stack) buildx(t *testing.T) func(args ...string) lab.Command {
	t.Helper()
	config := t.TempDir()
	command := func(args ...string) lab.Command {
		return lab.Command{
			Name: "buildx", Path: labtest.Must(lab.Bin("buildx"))(t), Args: args,
			Env: []string{"BUILDX_CONFIG=" + config, "DOCKER_CONFIG=" + config},
		}
	}
	labtest.Must(lab.Exec(labtest.Context(t, time.Minute), command("create", "--name", "kiln", "--driver", "remote", "tcp://"+s.Builder.Addr)))(t)
	return command
}

// gatewayBuild waits for the record of the build that pushes to ref.
func (s *stack) gatewayBuild(t *testing.T, ref string, states ...builderv1.BuildState) *builderv1.BuildRecord {
	t.Helper()
	var rec *builderv1.BuildRecord
	labtest.Eventually(t, 30*time.Second, fmt.Sprintf("a build of %s that is one of %v", ref, states), func() bool {
		page := labtest.Must(s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{Filter: fmt.Sprintf("tag = %q", ref)}))(t).GetBuilds()
		for _, state := range states {
			if len(page) == 1 && page[0].GetState() == state {
				rec = page[0]
				return true
			}
		}
		return false
	})
	if rec.GetOrigin() != builderv1.BuildOrigin_BUILD_ORIGIN_GATEWAY {
		t.Errorf("record: %v", rec)
	}
	return rec
}

const (
	queued  = builderv1.BuildState_BUILD_STATE_QUEUED
	running = builderv1.BuildState_BUILD_STATE_RUNNING
)

// Builds of buildctl, buildx and kiln build have the same record and events as
// those by RPC: live while they run, and after the daemon has lost its state and
// the builder was killed.
func TestGatewayBuildsHaveOneHistory(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	before := map[string]result{}
	for name, command := range s.clients(t) {
		ref := s.ref("history-" + strings.ReplaceAll(name, " ", "-"))
		dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN for i in 1 2 3 4 5; do echo line-$i; sleep 0.5; done; echo " + unique() + " >/x\n"})
		process := labtest.Must(s.lab.Run(command(dir, ref)))(t)
		rec := s.gatewayBuild(t, ref, queued, running)
		live := s.ended(t, rec.GetId(), builderv1.BuildState_BUILD_STATE_SUCCEEDED)
		labtest.Eventually(t, soon, name+" ends", func() bool { return process.ExitCode() == 0 })

		first, last := live.events[0], live.events[len(live.events)-1]
		if first.GetStarted().GetBuildId() != rec.GetId() {
			t.Errorf("%s: the first event is %v", name, first)
		}
		if want := "line-1\nline-2\nline-3\nline-4\nline-5\n"; live.log() != want {
			t.Errorf("%s: logged %q, want %q", name, live.log(), want)
		}
		if ran := live.ran(); len(ran) != 1 || !strings.Contains(ran[0], "RUN for i in") {
			t.Errorf("%s: ran %q", name, ran)
		}
		digest := labtest.Must(image.Digest(t.Context(), ref))(t)
		if outputs := last.GetOutcome().GetOutputs(); len(outputs) != 1 || outputs[0].GetDigest() != digest {
			t.Errorf("%s: outputs %v, want %s", name, outputs, digest)
		}
		if end := s.get(t, rec.GetId()); end.GetSteps().GetCompleted() == 0 || end.GetLastSequence() != uint64(len(live.events)) || end.GetDaemon() == "" {
			t.Errorf("%s: record %v", name, end)
		}
		before[rec.GetId()] = live
	}

	if err := s.Buildkitd.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(s.Buildkitd.Dir, "root")); err != nil {
		t.Fatal(err)
	}
	if err := s.Buildkitd.Start(labtest.Context(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	s.restart(t)
	for id, was := range before {
		if is := s.ended(t, id, builderv1.BuildState_BUILD_STATE_SUCCEEDED); fmt.Sprint(is.events) != fmt.Sprint(was.events) {
			t.Errorf("build %s had %d events, and has %d", id, len(was.events), len(is.events))
		}
	}
}

// All of what a build logs through the gateway is kept.
func TestGatewayBuildWithManyLines(t *testing.T) {
	const lines = 100_000
	s := sharedStack(t)
	ref := s.ref("many-lines")
	// buildkitd takes 200 KiB a second of a step.
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN for i in 0 1 2 3 4; do seq $((i*20000+1)) $((i*20000+20000)); sleep 1; done; echo " + unique() + " >/x\n"})
	labtest.Must(lab.Exec(labtest.Context(t, 2*time.Minute), s.clients(t)["buildctl"](dir, ref)))(t)
	got := strings.Split(s.ended(t, s.gatewayBuild(t, ref, builderv1.BuildState_BUILD_STATE_SUCCEEDED).GetId(), builderv1.BuildState_BUILD_STATE_SUCCEEDED).log(), "\n")
	if len(got) != lines+1 {
		t.Fatalf("%d lines, want %d", len(got)-1, lines)
	}
	for i := range lines {
		if got[i] != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %q", i+1, got[i])
		}
	}
}

// A build that its client never asks the status of has its history all the same.
func TestGatewayBuildWithoutStatus(t *testing.T) {
	s := sharedStack(t)
	ref := s.ref("no-status")
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN echo unseen " + unique() + "\n"})
	solveWithoutStatus(t, s, dir, ref)
	r := s.ended(t, s.gatewayBuild(t, ref, builderv1.BuildState_BUILD_STATE_SUCCEEDED).GetId(), builderv1.BuildState_BUILD_STATE_SUCCEEDED)
	if !strings.Contains(r.log(), "unseen") || len(r.ran()) != 1 {
		t.Errorf("events %v", r.events)
	}
}

// CancelBuild ends a build of the gateway like any other: its process is gone
// within seconds, and its client says who did it.
func TestCancelBuildOfTheGateway(t *testing.T) {
	s := sharedStack(t)
	for name, command := range s.clients(t) {
		t.Run(name, func(t *testing.T) {
			ref := s.ref("cancelled-" + strings.ReplaceAll(name, " ", "-"))
			mark := "97" + strconv.FormatInt(time.Now().UnixNano()%1e6, 10)
			dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN echo begun " + unique() + "; sleep " + mark + "\n"})
			process := labtest.Must(s.lab.Run(command(dir, ref)))(t)
			id := s.gatewayBuild(t, ref, running).GetId()
			s.running(t, id, "begun")
			res, err := s.api.CancelBuild(labtest.Context(t, 30*time.Second), &builderv1.CancelBuildRequest{BuildId: id})
			if err != nil || res.GetBuild().GetState() != builderv1.BuildState_BUILD_STATE_CANCELLED {
				t.Errorf("CancelBuild: %v, %v", res.GetBuild(), err)
			}
			labtest.Eventually(t, soon, "the RUN process is gone", func() bool { return len(daemons(t, "sleep\x00"+mark)) == 0 })
			labtest.Eventually(t, soon, "the client ends", func() bool { return process.ExitCode() > 0 })
			if out := process.Output(); !strings.Contains(out, "cancelled with CancelBuild") {
				t.Errorf("the client says:\n%s", out)
			}
			if r := s.ended(t, id, builderv1.BuildState_BUILD_STATE_CANCELLED); r.outcome.GetError().GetCode() != int32(codes.Canceled) {
				t.Errorf("outcome %v", r.outcome)
			}
		})
	}
}

// What the policy does not grant is refused through the gateway too, and leaves a
// failed build.
func TestPolicyHoldsInTheGateway(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN --network=host true\n"})
	for name, args := range map[string][]string{
		"entitlement": {"--allow", "network.host"},
		"frontend":    {"--frontend", "gateway.v0", "--opt", "source=" + s.Registry.Addr + "/evil:1"},
	} {
		t.Run(name, func(t *testing.T) {
			ref := s.ref("denied-" + name)
			out, err := lab.Exec(labtest.Context(t, time.Minute), buildctl(t, "tcp://"+s.Builder.Addr, dir, append(args, "--output", "type=image,name="+ref)...))
			if err == nil || !strings.Contains(out.Stderr, "is not granted by the builder's policy") || !strings.Contains(out.Stderr, "ask the operator") {
				t.Errorf("%v", err)
			}
			rec := s.gatewayBuild(t, ref, builderv1.BuildState_BUILD_STATE_FAILED)
			failure := detail[*errorsv1.BuildFailure](rec.GetOutcome().GetError())
			if rec.GetOutcome().GetError().GetCode() != int32(codes.PermissionDenied) || failure.GetReason() != errorsv1.Reason_REASON_POLICY_DENIED ||
				failure.GetClass() != errorsv1.FailureClass_FAILURE_CLASS_POLICY {
				t.Errorf("outcome %v", rec.GetOutcome())
			}
		})
	}
}

// A builder that is stopped ends the builds of the gateway as interrupted, those
// that wait too; a daemon that dies fails them as its own fault.
func TestGatewayBuildsWhenPartsStop(t *testing.T) {
	s := ownStack(t, lab.StackOptions{Builder: oneSlot()})
	begin := func(name string, state builderv1.BuildState) (string, *lab.Process) {
		dir := s.dir(t, map[string]string{"Dockerfile": s.endlessText()})
		process := labtest.Must(s.lab.Run(s.clients(t)["buildctl"](dir, s.ref(name))))(t)
		return s.gatewayBuild(t, s.ref(name), state).GetId(), process
	}
	lost, client := begin("lost", running)
	s.running(t, lost, "begun")
	if err := s.Buildkitd.Kill(); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, soon, "the client ends", func() bool { return client.ExitCode() > 0 })
	r := s.ended(t, lost, builderv1.BuildState_BUILD_STATE_FAILED)
	if failure := detail[*errorsv1.BuildFailure](r.outcome.GetError()); failure.GetReason() != errorsv1.Reason_REASON_DAEMON_UNAVAILABLE {
		t.Errorf("outcome %v", r.outcome)
	}
	if err := s.Buildkitd.Start(labtest.Context(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	// Calls are refused until the gateway's connection is made again.
	labtest.Eventually(t, soon, "the daemon is used again", func() bool {
		_, err := lab.Exec(labtest.Context(t, soon), lab.Command{
			Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{"--addr", "tcp://" + s.Builder.Addr, "debug", "workers"},
		})
		return err == nil
	})

	runs, _ := begin("runs", running)
	waits, _ := begin("waits", queued)
	if err := s.Builder.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	s.waitContainers(t, 0)
	s.startAgain(t)
	for _, id := range []string{runs, waits} {
		s.ended(t, id, builderv1.BuildState_BUILD_STATE_INTERRUPTED)
	}
	killed, _ := begin("killed", running)
	s.restart(t)
	s.ended(t, killed, builderv1.BuildState_BUILD_STATE_INTERRUPTED)
}

// solveWithoutStatus builds a directory through the gateway with bare calls.
func solveWithoutStatus(t *testing.T, s *stack, dir, ref string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := labtest.Must(client.New(ctx, "tcp://"+s.Builder.Addr))(t)
	defer func() { _ = c.Close() }()
	session := openSession(ctx, t, c, dir)
	if err := bareSolve(ctx, c, session, ref); err != nil {
		t.Fatal(err)
	}
}
