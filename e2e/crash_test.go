package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/failpoint/find"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
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
	labtest.Eventually(t, 20*time.Second, "no step runs", func() bool {
		return len(labtest.Must(lab.Running(s.Buildkitd.Dir))(t)) == 0
	})
}

// kill -9 of the builder at each of its failpoints: after it is started again, each
// build has one terminal state, the request_id starts no second solve, and nothing
// is left in buildkitd.
func TestKilledAtEachFailpoint(t *testing.T) {
	root := labtest.Must(lab.RepoRoot())(t)
	points := labtest.Must(find.Names(filepath.Join(root, "services", "builder")))(t)
	if len(points) < 6 {
		t.Fatalf("only %d failpoints: %v", len(points), points)
	}
	s := ownStack(t, lab.StackOptions{})
	for _, point := range points {
		t.Run(point, func(t *testing.T) { s.dieAt(t, point) })
	}
}

// dieAt has the builder die at a failpoint, under a build that may be tried again and
// one that may not, and looks at what became of them.
func (s *stack) dieAt(t *testing.T, point string) {
	told := &watched{events: map[string]map[uint64]string{}}
	specs := map[string]*builderv1.BuildSpec{"once": s.slow(t, 1), "again": s.slow(t, 3)}
	if point == "build.recover" { // which is when it starts, with builds that have not ended
		for name, spec := range specs {
			s.start(t, spec, point+name)
		}
	}
	labtest.Must(0, s.Builder.Kill())(t)
	if err := s.Builder.StartFailing(labtest.Context(t, time.Minute), point); err == nil {
		s.api = labtest.Must(dial(s.lab, s.Builder.Addr))(t)
		for name, spec := range specs {
			res, err := s.api.StartBuild(labtest.Context(t, time.Minute), &builderv1.StartBuildRequest{Spec: spec, RequestId: point + name})
			if err == nil { // else it died, and the same request comes again below
				noteAll(t, s, told, res.GetBuild().GetId())
			}
		}
	}
	select {
	case <-s.Builder.Done():
	case <-time.After(30 * time.Second):
		t.Fatalf("the builder did not come to %s", point)
	}
	s.startAgain(t)
	for name, spec := range specs {
		id := s.start(t, spec, point+name).GetId()
		state := told.endedOnce(t, s, id)
		if name == "again" && state != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
			t.Errorf("the build with a retry policy ended in %s", state)
		}
		if again := s.start(t, spec, point+name); again.GetId() != id {
			t.Errorf("request_id %s is build %s and then %s", point+name, id, again.GetId())
		}
		if got := s.get(t, id); got.GetRequestId() != point+name {
			t.Errorf("record %v", got)
		}
	}
	s.nothingRuns(t)
}

// slow is a build of some moments that is not cached.
func (s *stack) slow(t *testing.T, attempts int32) *builderv1.BuildSpec {
	t.Helper()
	spec := dockerfile("FROM " + s.base + "\nRUN echo begun; sleep 0.3; echo " + unique() + "\n")
	spec.Retry = &builderv1.RetryPolicy{MaxAttempts: attempts}
	return spec
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
	const kills, parallel, attempts = 50, 8, 10
	// Builds that go on wait for their turn: what is killed is the builder, not the
	// daemon under the builds of fifty builders.
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{MaxRunningBuilds: parallel}})
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
						spec.Retry = &builderv1.RetryPolicy{MaxAttempts: attempts}
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
		time.Sleep(time.Duration(20+rand.IntN(1200)) * time.Millisecond)
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
		// One that was killed each time has no attempt left.
		if k.spec.GetRetry() != nil && state != builderv1.BuildState_BUILD_STATE_SUCCEEDED && s.get(t, k.id).GetAttempt() < attempts {
			t.Errorf("build %s, which may be tried %d times, ended in %s", k.id, attempts, state)
		}
		if again := s.start(t, k.spec, request); again.GetId() != k.id {
			t.Errorf("request_id %s is build %s and then %s", request, k.id, again.GetId())
		}
	}
	t.Logf("%d builds: %v", len(acknowledged), states)
	if len(acknowledged) < kills || states[builderv1.BuildState_BUILD_STATE_SUCCEEDED] < kills/2 || states[builderv1.BuildState_BUILD_STATE_INTERRUPTED] == 0 {
		t.Errorf("%d builds were acknowledged, and ended in %v: the kills did not come at all moments", len(acknowledged), states)
	}
	s.nothingRuns(t)
}
