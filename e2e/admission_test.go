package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// startMany starts n builds at once, in turns of the projects.
func startMany(t *testing.T, s *stack, n int, projects []string, spec func(i int) *builderv1.BuildSpec) []string {
	t.Helper()
	ids := make([]string, n)
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			build := spec(i)
			build.Project = projects[i%len(projects)]
			res, err := s.api.StartBuild(labtest.Context(t, time.Minute), &builderv1.StartBuildRequest{Spec: build, RequestId: fmt.Sprint("many-", i)})
			if err != nil {
				t.Errorf("build %d: %v", i, err)
			}
			ids[i] = res.GetBuild().GetId()
		})
	}
	group.Wait()
	return ids
}

// Sixty-four builds at once of two tenants and four slots: none is lost, no more
// than four run, both tenants get the same share of the turns, each that waits
// says its place and why, the queue outlives a kill -9, and memory stays bounded.
func TestSixtyFourBuildsWithFourSlots(t *testing.T) {
	const builds, slots = 64, 4
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{MaxRunningBuilds: slots}})
	ids := startMany(t, s, builds, []string{"red", "blue"}, func(i int) *builderv1.BuildSpec {
		spec := dockerfile(fmt.Sprintf("FROM %s\nRUN sleep 0.5; echo %d %s >/x\n", s.base, i, unique()))
		spec.Retry = &builderv1.RetryPolicy{MaxAttempts: 3}
		return spec
	})
	waiting := 0
	for _, id := range ids {
		var rec *builderv1.BuildRecord
		labtest.Eventually(t, 10*time.Second, "a build runs, or says that it waits", func() bool {
			rec = s.get(t, id)
			return rec.GetState() != builderv1.BuildState_BUILD_STATE_QUEUED || rec.GetQueue() != nil
		})
		if rec.GetState() == builderv1.BuildState_BUILD_STATE_QUEUED {
			waiting++
			if rec.GetQueue().GetPosition() < 1 || !strings.Contains(rec.GetQueue().GetReason(), "max_running_builds") {
				t.Errorf("a build that waits says %v", rec.GetQueue())
			}
		}
	}
	if waiting < builds/2 {
		t.Errorf("only %d builds wait", waiting)
	}
	labtest.Eventually(t, time.Minute, "a quarter has ended", func() bool {
		return len(finished(t, s, `state = SUCCEEDED`)) >= builds/4
	})
	before := finished(t, s, `state = SUCCEEDED`)
	s.restart(t)
	for _, id := range ids {
		s.ended(t, id, builderv1.BuildState_BUILD_STATE_SUCCEEDED)
	}
	all := finished(t, s, `state = SUCCEEDED`)
	if len(all) != builds {
		t.Fatalf("%d builds, want %d", len(all), builds)
	}
	atMost(t, all, slots)
	// In what ended before the kill and in the first half: equal shares, but for the
	// builds that are under way; in the first half twice, for those of the kill too.
	for underWay, part := range map[int][]*builderv1.BuildRecord{slots: before, 2 * slots: all[:builds/2]} {
		red := 0
		for _, rec := range part {
			if rec.GetProject() == "red" {
				red++
			}
		}
		if diff := red - (len(part) - red); diff > underWay || diff < -underWay {
			t.Errorf("of %d builds, red had %d", len(part), red)
		}
	}
	if peak := peakMemory(t, s.Builder.PID()); peak > 400<<20 { // with the race detector
		t.Errorf("the builder took %d MiB", peak>>20)
	}
}

// finished lists builds in the order in which they ended.
func finished(t *testing.T, s *stack, filter string) []*builderv1.BuildRecord {
	t.Helper()
	page := labtest.Must(s.api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{PageSize: 1000, Filter: filter}))(t).GetBuilds()
	slices.SortFunc(page, func(a, b *builderv1.BuildRecord) int {
		return a.GetEndTime().AsTime().Compare(b.GetEndTime().AsTime())
	})
	return page
}

// atMost fails the test when more than n of the builds ran at the same time. Builds
// of a second attempt say when the first began, and are left out.
func atMost(t *testing.T, builds []*builderv1.BuildRecord, n int) {
	t.Helper()
	type edge struct {
		at   time.Time
		step int
	}
	var edges []edge
	for _, b := range builds {
		if b.GetAttempt() == 1 {
			edges = append(edges, edge{b.GetStartTime().AsTime(), 1}, edge{b.GetEndTime().AsTime(), -1})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return a.step - b.step
	})
	running, peak := 0, 0
	for _, e := range edges {
		running += e.step
		peak = max(peak, running)
	}
	// The end is written a moment after the slot is given back.
	if peak > 2*n {
		t.Errorf("%d builds ran at once, want at most %d", peak, n)
	}
}

// peakMemory is the most that a process has had resident, in bytes.
func peakMemory(t *testing.T, pid int) int {
	t.Helper()
	status := string(labtest.Must(os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status")))(t))
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return labtest.Must(strconv.Atoi(strings.Fields(rest)[0]))(t) << 10
		}
	}
	t.Fatalf("no VmHWM in %s", status)
	return 0
}

// Limits of a tenant and of the queue: one more is RESOURCE_EXHAUSTED, with
// RetryInfo, and names the limit; another tenant is not held up; HIGH goes first.
func TestLimitsAndPriorities(t *testing.T) {
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{
		MaxRunningBuilds: 2,
		Admission: &configv1.AdmissionConfig{
			MaxQueued: 5, MaxQueuedBytes: 1 << 20,
			Tenants: []*configv1.TenantConfig{{Name: "small*", Limits: &configv1.TenantLimits{MaxRunning: 1, MaxQueued: 2}}},
		},
	}})
	build := func(project string, priority builderv1.Priority) *builderv1.BuildSpec {
		spec := dockerfile("FROM " + s.base + "\nRUN echo begun; sleep 2; echo " + unique() + "\n")
		spec.Project, spec.Priority = project, priority
		return spec
	}
	first := s.start(t, build("small-1", 0), "").GetId()
	s.running(t, first, "begun")
	normal := s.start(t, build("small-1", builderv1.Priority_PRIORITY_NORMAL), "").GetId()
	high := s.start(t, build("small-1", builderv1.Priority_PRIORITY_HIGH), "").GetId()
	labtest.Eventually(t, 10*time.Second, "the tenant's limit is named", func() bool {
		return strings.Contains(s.get(t, high).GetQueue().GetReason(), "small-1")
	})
	_, err := s.api.StartBuild(t.Context(), &builderv1.StartBuildRequest{Spec: build("small-1", 0)})
	refused(t, err, codes.ResourceExhausted, "LIMIT_REACHED", "")
	if retry := detail[*errdetails.RetryInfo](status.Convert(err).Proto()); retry.GetRetryDelay().AsDuration() <= 0 {
		t.Errorf("no RetryInfo in %v", err)
	}
	// The second slot is for the others.
	other := s.start(t, build("other", 0), "").GetId()
	s.running(t, other, "begun")
	// What waits is in memory, and is bounded by its bytes too.
	large := build("other", 0)
	large.GetContext().GetInline().Files = map[string]*builderv1.InlineFile{"large": {Content: make([]byte, 1<<20)}}
	_, err = s.api.StartBuild(t.Context(), &builderv1.StartBuildRequest{Spec: large})
	refused(t, err, codes.ResourceExhausted, "LIMIT_REACHED", "")
	if limit := detail[*errdetails.ErrorInfo](status.Convert(err).Proto()).GetMetadata()["limit"]; limit != "admission.max_queued_bytes" {
		t.Errorf("the limit is %q", limit)
	}
	for _, id := range []string{first, normal, high, other} {
		s.ended(t, id, builderv1.BuildState_BUILD_STATE_SUCCEEDED)
	}
	if a, b := s.get(t, high).GetStartTime().AsTime(), s.get(t, normal).GetStartTime().AsTime(); !a.Before(b) {
		t.Errorf("HIGH began at %s, NORMAL at %s", a, b)
	}
}
