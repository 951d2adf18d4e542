package e2e_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// watched is what a watcher of a build was told before the builder died: what was
// told once must be told again, the same.
type watched struct {
	mu     sync.Mutex
	events map[string]map[uint64]string
}

func (w *watched) note(id string, e *builderv1.BuildEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.events[id] == nil {
		w.events[id] = map[uint64]string{}
	}
	w.events[id][e.GetSequence()] = e.String()
}

// endedOnce fails the test unless a build has one terminal state, in its record,
// its one outcome and its last event alike, events without a gap, and all that a
// watcher was told before.
func (w *watched) endedOnce(t *testing.T, s *stack, id string) builderv1.BuildState {
	t.Helper()
	r := watch(labtest.Context(t, 2*time.Minute), s.api, id, 0)
	if r.err != nil || len(r.events) == 0 {
		t.Fatalf("build %s: %v", id, r.err)
	}
	inOrder(t, r.events, 1)
	outcomes := 0
	for _, e := range r.events {
		if e.GetOutcome() != nil {
			outcomes++
		}
	}
	rec := s.get(t, id)
	state := rec.GetState()
	if outcomes != 1 || r.outcome.GetState() != state || rec.GetLastSequence() != uint64(len(r.events)) || rec.GetEndTime() == nil {
		t.Errorf("build %s: %d outcomes, the last event says %s, the record %v", id, outcomes, r.outcome.GetState(), rec)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for seq, text := range w.events[id] {
		if seq > uint64(len(r.events)) || r.events[seq-1].String() != text {
			t.Errorf("build %s: event %d was told before the kill, and is now another or gone", id, seq)
		}
	}
	return state
}

// nothingRuns fails the test when something of a build is still in buildkitd.
func (s *stack) nothingRuns(t *testing.T) {
	t.Helper()
	labtest.Eventually(t, 20*time.Second, "no container is left", func() bool {
		return len(labtest.Must(lab.Containers(s.Buildkitd.Dir))(t)) == 0
	})
}

// marked is a build whose RUN leaves a line in a directory that all share each
// time that it really runs to its end: a cache mount.
func (s *stack) marked(name, seconds string) *builderv1.BuildSpec {
	return dockerfile(fmt.Sprintf(`FROM %s
RUN --mount=type=cache,id=marks,target=/marks echo begun; sleep %s; echo x >>/marks/%s; wc -l </marks/%s
`, s.base, seconds, name, name))
}

// kill -9 of the builder at each of its failpoints: after it is started again, each
// build has one terminal state, the request_id starts no second solve, and nothing
// is left in buildkitd.
func TestKilledAtEachFailpoint(t *testing.T) {
	points := labtest.Must(lab.Failpoints("services/builder"))(t)
	if len(points) < 6 {
		t.Fatalf("only %d failpoints: %v", len(points), points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			s := ownStack(t, lab.StackOptions{BuilderBin: "failpoints/kiln-builder"})
			labtest.Must(0, s.Builder.Stop(t.Context()))(t)
			told := &watched{events: map[string]map[uint64]string{}}
			s.Builder.SetEnv("KILN_FAILPOINT=" + point)
			started := s.Builder.Start(labtest.Context(t, time.Minute)) == nil
			s.api = labtest.Must(dial(s.lab, s.Builder.Addr))(t)
			specs := map[string]*builderv1.BuildSpec{
				"once": s.marked("once", "0.3"), "goes-on": s.marked("goes-on", "0.3"),
			}
			specs["goes-on"].Retry = &builderv1.RetryPolicy{MaxAttempts: 3}
			if started {
				for _, name := range slices.Sorted(maps.Keys(specs)) {
					res, err := s.api.StartBuild(labtest.Context(t, time.Minute), &builderv1.StartBuildRequest{Spec: specs[name], RequestId: name})
					if err != nil {
						continue // it died; the same request comes again below
					}
					noteAll(t, s, told, res.GetBuild().GetId())
				}
				select {
				case <-s.Builder.Done():
				case <-time.After(30 * time.Second):
					if point != "build.recover" {
						t.Fatalf("the builder did not come to %s", point)
					}
				}
			}
			labtest.Must(0, s.Builder.Kill())(t)
			s.Builder.SetEnv()
			s.startAgain(t)
			for _, name := range slices.Sorted(maps.Keys(specs)) {
				id := s.start(t, specs[name], name).GetId()
				state := told.endedOnce(t, s, id)
				if name == "goes-on" && state != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
					t.Errorf("the build with a retry policy ended in %s", state)
				}
				if again := s.start(t, specs[name], name); again.GetId() != id {
					t.Errorf("request_id %s is build %s and then %s", name, id, again.GetId())
				}
			}
			if n := len(finished(t, s, "")); n != 2 {
				t.Errorf("%d builds, want 2", n)
			}
			s.nothingRuns(t)
		})
	}
}

// noteAll watches a build and notes what it is told, until the builder dies or the
// build ends.
func noteAll(t *testing.T, s *stack, told *watched, id string) {
	t.Helper()
	stream, err := s.api.WatchBuild(labtest.Context(t, time.Minute), &builderv1.WatchBuildRequest{BuildId: id})
	for err == nil {
		var res *builderv1.WatchBuildResponse
		if res, err = stream.Recv(); err == nil {
			told.note(id, res.GetEvent())
		}
	}
}

// kill -9 of the builder at fifty random moments under eight builds.
func TestKilledAtRandomMoments(t *testing.T) {
	const kills, parallel = 50, 8
	s := ownStack(t, lab.StackOptions{})
	told := &watched{events: map[string]map[uint64]string{}}
	type known struct {
		id   string
		spec *builderv1.BuildSpec
	}
	var mu sync.Mutex
	acknowledged := map[string]known{} // by request id
	for round := range kills {
		api := s.api
		var group sync.WaitGroup
		for i := range parallel {
			group.Go(func() {
				for n := 0; ; n++ {
					request := fmt.Sprintf("r%d-%d-%d", round, i, n)
					spec := dockerfile("FROM " + s.base + "\nRUN echo " + request + "; sleep 0.1; echo end\n")
					if i%2 == 0 {
						spec.Retry = &builderv1.RetryPolicy{MaxAttempts: 5}
					}
					res, err := api.StartBuild(t.Context(), &builderv1.StartBuildRequest{Spec: spec, RequestId: request})
					if err != nil {
						return // the builder is dead
					}
					id := res.GetBuild().GetId()
					mu.Lock()
					acknowledged[request] = known{id, spec}
					mu.Unlock()
					stream, err := api.WatchBuild(t.Context(), &builderv1.WatchBuildRequest{BuildId: id})
					for err == nil {
						var event *builderv1.WatchBuildResponse
						if event, err = stream.Recv(); err == nil {
							told.note(id, event.GetEvent())
						}
					}
				}
			})
		}
		time.Sleep(time.Duration(20+rand.IntN(600)) * time.Millisecond)
		if err := s.Builder.Kill(); err != nil {
			t.Fatal(err)
		}
		group.Wait()
		s.startAgain(t)
	}
	states := map[builderv1.BuildState]int{}
	for request, k := range acknowledged {
		state := told.endedOnce(t, s, k.id)
		states[state]++
		if k.spec.GetRetry() != nil && state != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
			t.Errorf("build %s, which may be tried 5 times, ended in %s", k.id, state)
		}
		if again := s.start(t, k.spec, request); again.GetId() != k.id {
			t.Errorf("request_id %s is build %s and then %s", request, k.id, again.GetId())
		}
	}
	t.Logf("%d builds: %v", len(acknowledged), states)
	if len(acknowledged) < kills {
		t.Errorf("only %d builds were acknowledged", len(acknowledged))
	}
	s.nothingRuns(t)
}
