package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// start calls StartBuild.
func (s *stack) start(t *testing.T, spec *builderv1.BuildSpec, requestID string) *builderv1.BuildRecord {
	t.Helper()
	res, err := s.api.StartBuild(labtest.Context(t, time.Minute), &builderv1.StartBuildRequest{Spec: spec, RequestId: requestID})
	if err != nil {
		t.Fatalf("StartBuild: %v", err)
	}
	return res.GetBuild()
}

// get calls GetBuild.
func (s *stack) get(t *testing.T, id string) *builderv1.BuildRecord {
	t.Helper()
	return labtest.Must(s.api.GetBuild(labtest.Context(t, time.Minute), &builderv1.GetBuildRequest{BuildId: id}))(t).GetBuild()
}

// watch reads the events of a build from a number on, to the end of the stream.
func watch(ctx context.Context, api builderv1.BuilderServiceClient, id string, from uint64) result {
	stream, err := api.WatchBuild(ctx, &builderv1.WatchBuildRequest{BuildId: id, FromSequence: from})
	if err != nil {
		return result{err: err}
	}
	return collect(stream.Recv)
}

// inOrder fails the test unless the events have the numbers from first on.
func inOrder(t *testing.T, events []*builderv1.BuildEvent, first uint64) {
	t.Helper()
	for i, e := range events {
		if e.GetSequence() != first+uint64(i) { //nolint:gosec // events of a test
			t.Fatalf("event %d has the number %d, want %d", i, e.GetSequence(), first+uint64(i)) //nolint:gosec // the same
		}
	}
}

// ended waits for a build's outcome.
func (s *stack) ended(t *testing.T, id string, want builderv1.BuildState) result {
	t.Helper()
	r := watch(labtest.Context(t, 2*time.Minute), s.api, id, 0)
	if r.err != nil {
		t.Fatalf("WatchBuild: %v", r.err)
	}
	if r.outcome.GetState() != want {
		t.Fatalf("build %s ended in %v, want %s\n%s", id, r.outcome, want, r.log())
	}
	inOrder(t, r.events, 1)
	return r
}

// running waits until a step's output holds text.
func (s *stack) running(t *testing.T, id, text string) {
	t.Helper()
	stream := labtest.Must(s.api.WatchBuild(labtest.Context(t, time.Minute), &builderv1.WatchBuildRequest{BuildId: id}))(t)
	var log string
	for {
		res, err := stream.Recv()
		if err != nil {
			t.Fatalf("before %q was written: %v, log %q", text, err, log)
		}
		if log += string(res.GetEvent().GetLog().GetData()); strings.Contains(log, text) {
			return
		}
	}
}

// A build that was started goes on without its caller. Who watches it, while it
// runs or after its end, from the start or from any number, gets the same events.
func TestStartBuildGoesOnAndIsWatched(t *testing.T) {
	s := sharedStack(t)
	ref := s.ref("started")
	rec := s.start(t, dockerfile("FROM "+s.base+"\nRUN for i in 1 2 3 4 5 6; do echo line-$i; sleep 0.2; done; echo "+unique()+" >/x\n", ref), "")
	if rec.GetId() == "" || rec.GetState() == builderv1.BuildState_BUILD_STATE_SUCCEEDED || rec.GetAttempt() != 1 {
		t.Errorf("started: %v", rec)
	}
	live := s.ended(t, rec.GetId(), builderv1.BuildState_BUILD_STATE_SUCCEEDED)
	again := s.ended(t, rec.GetId(), builderv1.BuildState_BUILD_STATE_SUCCEEDED)
	if len(again.events) != len(live.events) {
		t.Fatalf("%d events while it ran, and %d after", len(live.events), len(again.events))
	}
	middle := live.events[len(live.events)/2].GetSequence()
	tail := watch(t.Context(), s.api, rec.GetId(), middle)
	if tail.err != nil || len(tail.events) != len(live.events)-int(middle)+1 { //nolint:gosec // events of a test
		t.Errorf("from %d on: %d events of %d, %v", middle, len(tail.events), len(live.events), tail.err)
	}
	inOrder(t, tail.events, middle)
	if got := s.get(t, rec.GetId()); got.GetLastSequence() != uint64(len(live.events)) || got.GetOutcome().GetOutputs()[0].GetDigest() != labtest.Must(image.Digest(t.Context(), ref))(t) {
		t.Errorf("record: %v", got)
	}
	last := live.events[len(live.events)-1].GetSequence()
	if r := watch(t.Context(), s.api, rec.GetId(), last+1); r.err != nil || len(r.events) != 0 {
		t.Errorf("after the last event: %v, %v", r.events, r.err)
	}
	refused(t, watch(t.Context(), s.api, rec.GetId(), last+2).err, codes.OutOfRange, "OUT_OF_RANGE", "")
	refused(t, watch(t.Context(), s.api, "no-such-build", 0).err, codes.NotFound, "NOT_FOUND", "")
}

// The same request_id is the same build: for two callers at once, by Build and by
// StartBuild, after its end and for a builder that was killed and started again.
func TestRequestIDIsTheSameBuild(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	spec := dockerfile("FROM "+s.base+"\nRUN sleep 1; echo "+unique()+" >/x\n", s.ref("once"))
	ids := make([]string, 16)
	var group sync.WaitGroup
	for i := range ids {
		group.Go(func() {
			if i%2 == 0 {
				r, err := s.api.StartBuild(t.Context(), &builderv1.StartBuildRequest{Spec: spec, RequestId: "once"})
				if err != nil {
					t.Error(err)
				}
				ids[i] = r.GetBuild().GetId()
				return
			}
			stream, err := s.api.Build(t.Context(), &builderv1.BuildRequest{Spec: spec, RequestId: "once"})
			if err != nil {
				t.Error(err)
				return
			}
			for first := true; ; first = false {
				res, err := stream.Recv()
				if first {
					ids[i] = res.GetEvent().GetStarted().GetBuildId()
				}
				if errors.Is(err, io.EOF) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("the callers have builds %q", ids)
		}
	}
	s.ended(t, ids[0], builderv1.BuildState_BUILD_STATE_SUCCEEDED)
	s.restart(t)
	if rec := s.start(t, spec, "once"); rec.GetId() != ids[0] || rec.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		t.Errorf("after kill -9 and a start: %v", rec)
	}
	other := dockerfile("FROM " + s.base + "\nRUN echo other\n")
	_, err := s.api.StartBuild(t.Context(), &builderv1.StartBuildRequest{Spec: other, RequestId: "once"})
	refused(t, err, codes.AlreadyExists, "ALREADY_EXISTS", "")
	if n := len(labtest.Must(s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{}))(t).GetBuilds()); n != 1 {
		t.Errorf("%d builds, want 1", n)
	}
}

// restart kills the builder with -9 and starts it again on its state.
func (s *stack) restart(t *testing.T) {
	t.Helper()
	if err := s.Builder.Kill(); err != nil {
		t.Fatal(err)
	}
	s.startAgain(t)
}

// startAgain starts a builder that has ended, on its state.
func (s *stack) startAgain(t *testing.T) {
	t.Helper()
	if err := s.Builder.Start(labtest.Context(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	// A connection of its own: the old one would wait in back-off.
	s.api = labtest.Must(dial(s.lab, s.Builder.Addr))(t)
}

// CancelBuild ends a build that runs, with its processes, and one that waits.
func TestCancelBuild(t *testing.T) {
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{MaxRunningBuilds: 1}})
	mark := "98" + strconv.FormatInt(time.Now().UnixNano()%1e6, 10)
	runs := s.start(t, dockerfile("FROM "+s.base+"\nRUN echo begun; sleep "+mark+"\n"), "").GetId()
	s.running(t, runs, "begun")
	if steps := labtest.Must(lab.Running(s.Buildkitd.Dir))(t); len(steps) != 1 {
		t.Errorf("%d steps run, want 1", len(steps))
	}
	waits := s.start(t, dockerfile("FROM "+s.base+"\nRUN true\n"), "").GetId()
	labtest.Eventually(t, 10*time.Second, "the second build waits", func() bool {
		rec := s.get(t, waits)
		return rec.GetState() == builderv1.BuildState_BUILD_STATE_QUEUED && rec.GetQueue().GetPosition() == 1 && rec.GetQueue().GetReason() != ""
	})
	for _, id := range []string{waits, runs, runs} {
		res, err := s.api.CancelBuild(labtest.Context(t, 30*time.Second), &builderv1.CancelBuildRequest{BuildId: id})
		if err != nil || res.GetBuild().GetState() != builderv1.BuildState_BUILD_STATE_CANCELLED {
			t.Errorf("CancelBuild: %v, %v", res.GetBuild(), err)
		}
	}
	labtest.Eventually(t, 10*time.Second, "the RUN process is gone", func() bool { return len(daemons(t, mark)) == 0 })
	s.nothingRuns(t)
	for _, id := range []string{waits, runs} {
		r := s.ended(t, id, builderv1.BuildState_BUILD_STATE_CANCELLED)
		if r.outcome.GetError().GetCode() != int32(codes.Canceled) {
			t.Errorf("outcome %v", r.outcome)
		}
	}
	_, err := s.api.CancelBuild(t.Context(), &builderv1.CancelBuildRequest{BuildId: "no-such-build"})
	refused(t, err, codes.NotFound, "NOT_FOUND", "")
}

// RetryBuild builds the same request again, once its build has ended; secrets are
// sent again.
func TestRetryBuild(t *testing.T) {
	s := sharedStack(t)
	missing := s.Registry.Addr + "/retry/base:1"
	spec := dockerfile("FROM "+missing+"\nRUN --mount=type=secret,id=tok cat /run/secrets/tok | wc -c >/n\n", s.ref("retried"))
	spec.Secrets = []*builderv1.Secret{{Id: "tok", Value: []byte("first-value")}}
	first := s.start(t, spec, "").GetId()
	s.ended(t, first, builderv1.BuildState_BUILD_STATE_FAILED)

	_, err := s.api.RetryBuild(t.Context(), &builderv1.RetryBuildRequest{BuildId: first})
	refused(t, err, codes.FailedPrecondition, "WRONG_STATE", "")
	_, err = s.api.RetryBuild(t.Context(), &builderv1.RetryBuildRequest{
		BuildId: first, Secrets: []*builderv1.Secret{{Id: "tok", Value: []byte("x")}, {Id: "other", Value: []byte("x")}},
	})
	refused(t, err, codes.InvalidArgument, "INVALID_FIELD", "secrets")

	s.succeed(t, dockerfile("FROM "+s.base+"\n", missing)) // now it is there
	res, err := s.api.RetryBuild(t.Context(), &builderv1.RetryBuildRequest{
		BuildId: first, Secrets: []*builderv1.Secret{{Id: "tok", Value: []byte("second-value")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	second := res.GetBuild()
	if second.GetRetryOf() != first || second.GetId() == first {
		t.Errorf("retry: %v", second)
	}
	s.ended(t, second.GetId(), builderv1.BuildState_BUILD_STATE_SUCCEEDED)
	if got := file(t, s.ref("retried"), "", "/n"); got != "12\n" {
		t.Errorf("the secret had %q bytes", got)
	}

	runs := s.start(t, dockerfile("FROM "+s.base+"\nRUN echo begun; sleep 5; echo "+unique()+"\n"), "").GetId()
	_, err = s.api.RetryBuild(t.Context(), &builderv1.RetryBuildRequest{BuildId: runs})
	refused(t, err, codes.FailedPrecondition, "WRONG_STATE", "")
	labtest.Must(s.api.CancelBuild(t.Context(), &builderv1.CancelBuildRequest{BuildId: runs}))(t)
	_, err = s.api.RetryBuild(t.Context(), &builderv1.RetryBuildRequest{BuildId: "no-such-build"})
	refused(t, err, codes.NotFound, "NOT_FOUND", "")
}

// An infrastructure failure is tried again as the policy says: the daemon is
// killed under the build, and the build succeeds when it is back.
func TestRetryPolicyOutlivesTheDaemon(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	spec := dockerfile("FROM "+s.base+"\nRUN echo begun; sleep 3; echo "+unique()+" >/x\n", s.ref("survivor"))
	spec.Retry = &builderv1.RetryPolicy{MaxAttempts: 3}
	id := s.start(t, spec, "").GetId()
	s.running(t, id, "begun")
	if err := s.Buildkitd.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Buildkitd.Start(labtest.Context(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	r := s.ended(t, id, builderv1.BuildState_BUILD_STATE_SUCCEEDED)
	var retries int
	for _, e := range r.events {
		if retry := e.GetRetry(); retry != nil {
			retries++
			if retry.GetError() == nil || retry.GetAttempt() != 2 {
				t.Errorf("retry event: %v", retry)
			}
		}
	}
	if rec := s.get(t, id); retries != 1 || rec.GetAttempt() != 2 {
		t.Errorf("%d retry events, record %v", retries, rec)
	}
	user := dockerfile("FROM " + s.base + "\nRUN exit 3\n")
	user.Retry = spec.Retry
	failed := s.ended(t, s.start(t, user, "").GetId(), builderv1.BuildState_BUILD_STATE_FAILED)
	for _, e := range failed.events {
		if e.GetRetry() != nil {
			t.Errorf("a failure of the Dockerfile was tried again: %v", e)
		}
	}
}

// ListBuilds filters, orders and pages.
func TestListBuildsFiltersAndOrders(t *testing.T) {
	s := sharedStack(t)
	var ids []string
	for i, project := range []string{"list-a", "list-b", "list-a"} {
		spec := dockerfile("FROM scratch\nCOPY <<EOF /x\n"+unique()+"\nEOF\n", s.ref(fmt.Sprintf("list-%d", i)))
		if i == 2 {
			spec = dockerfile("FROM scratch\nCOPY nope /\n", s.ref("list-2"))
		}
		spec.Project = project
		ids = append(ids, s.build(t, spec).id())
	}
	list := func(filter, order string) []string {
		t.Helper()
		var got []string
		token := ""
		for {
			page, err := s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{PageSize: 1, PageToken: token, Filter: filter, OrderBy: order})
			if err != nil {
				t.Fatalf("%s: %v", filter, err)
			}
			for _, b := range page.GetBuilds() {
				got = append(got, b.GetId())
			}
			if token = page.GetNextPageToken(); token == "" {
				return got
			}
		}
	}
	for filter, want := range map[string][]string{
		`project = "list-a"`:                           {ids[2], ids[0]},
		`project = "list-a" AND state = FAILED`:        {ids[2]},
		`tag:"` + s.Registry.Addr + `/list-"`:          {ids[2], ids[1], ids[0]},
		`tag = "` + s.ref("list-1") + `"`:              {ids[1]},
		`project = "list-a" AND NOT state = SUCCEEDED`: {ids[2]},
		`(project = "list-b" OR project = "list-a") AND create_time > "2999-01-01T00:00:00Z"`: nil,
	} {
		if got := list(filter, ""); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", filter, got, want)
		}
	}
	if got, want := list(`project = "list-a" OR project = "list-b"`, "project desc, create_time"), []string{ids[1], ids[0], ids[2]}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("ordered: %v, want %v", got, want)
	}
	_, err := s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{Filter: `state = PURPLE`})
	refused(t, err, codes.InvalidArgument, "INVALID_FIELD", "filter")
	_, err = s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{OrderBy: `colour`})
	refused(t, err, codes.InvalidArgument, "INVALID_FIELD", "order_by")
	page := labtest.Must(s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{PageSize: 1, Filter: `project = "list-a"`}))(t)
	_, err = s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{PageToken: page.GetNextPageToken(), Filter: `project = "list-b"`})
	refused(t, err, codes.InvalidArgument, "INVALID_FIELD", "page_token")
}
