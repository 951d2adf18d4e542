package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

func ptr[T any](v T) *T { return &v }

// manual is a configuration with which nothing goes by itself.
func manual() *configv1.CacheManagerConfig {
	return &configv1.CacheManagerConfig{Interval: durationpb.New(time.Hour)}
}

// pruned is what a run told.
type pruned struct {
	started, finished *cachemanagerv1.Run
	plan              *cachemanagerv1.Plan
	removed, kept     []*cachemanagerv1.Verdict
	missed            []*cachemanagerv1.MissedCache
	err               error
}

func (m cacheManager) prune(ctx context.Context, req *cachemanagerv1.PruneRequest) (p pruned) {
	stream, err := m.api.Prune(ctx, req)
	if err != nil {
		return pruned{err: err}
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return p
		}
		if err != nil {
			p.err = err
			return p
		}
		switch e := e.GetEvent().(type) {
		case *cachemanagerv1.PruneResponse_Started:
			p.started = e.Started
		case *cachemanagerv1.PruneResponse_Planned:
			p.plan = e.Planned
		case *cachemanagerv1.PruneResponse_Removed:
			p.removed = append(p.removed, e.Removed)
		case *cachemanagerv1.PruneResponse_Kept:
			p.kept = append(p.kept, e.Kept)
		case *cachemanagerv1.PruneResponse_Missed:
			p.missed = append(p.missed, e.Missed)
		case *cachemanagerv1.PruneResponse_Finished:
			p.finished = e.Finished
		}
	}
}

// plan is a whole plan, what stays included.
func (m cacheManager) plan(t *testing.T, policy *cachemanagerv1.Policy) (*cachemanagerv1.Plan, []*cachemanagerv1.Verdict) {
	t.Helper()
	req := &cachemanagerv1.PlanPruneRequest{WithKept: true, PageSize: 7}
	if policy != nil {
		req.By = &cachemanagerv1.PlanPruneRequest_Policy{Policy: policy}
	}
	var all []*cachemanagerv1.Verdict
	for {
		res := labtest.Must(m.api.PlanPrune(labtest.Context(t, time.Minute), req))(t)
		all = append(all, res.GetVerdicts()...)
		if res.GetNextPageToken() == "" {
			return res.GetPlan(), all
		}
		req = &cachemanagerv1.PlanPruneRequest{PageToken: res.GetNextPageToken()}
	}
}

func (m cacheManager) records(t *testing.T) []*cachemanagerv1.Record {
	t.Helper()
	var all []*cachemanagerv1.Record
	req := &cachemanagerv1.ListRecordsRequest{PageSize: 1000}
	for {
		res := labtest.Must(m.api.ListRecords(labtest.Context(t, time.Minute), req))(t)
		all = append(all, res.GetRecords()...)
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			return all
		}
	}
}

func idsOf(verdicts []*cachemanagerv1.Verdict, action cachemanagerv1.VerdictAction) (ids []string) {
	for _, v := range verdicts {
		if v.GetAction() == action {
			ids = append(ids, v.GetRecord().GetId())
		}
	}
	return ids
}

const (
	remove = cachemanagerv1.VerdictAction_VERDICT_ACTION_REMOVE
	keep   = cachemanagerv1.VerdictAction_VERDICT_ACTION_KEEP
)

// mixed builds a little of everything: chains of steps, contexts, cache mounts.
type mixed struct {
	daemon *lab.Buildkitd
	base   string
	random *rand.Rand
}

func (m mixed) build(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	text := "FROM " + m.base + "\n"
	if m.random.IntN(3) == 0 {
		text = "FROM scratch\n"
	}
	files := map[string]string{}
	for i := range 1 + m.random.IntN(3) {
		name := fmt.Sprintf("f%d", m.random.IntN(4))
		files[name] = strings.Repeat(strconv.Itoa(m.random.IntN(5)), 1+m.random.IntN(200_000))
		text += fmt.Sprintf("COPY %s /%s.%d\n", name, name, i)
		if strings.HasPrefix(text, "FROM "+m.base) && m.random.IntN(3) == 0 {
			text += fmt.Sprintf("RUN --mount=type=cache,target=/cache,id=c%d echo %d >/r%d && echo x >>/cache/x\n", m.random.IntN(3), m.random.IntN(20), i)
		}
	}
	files["Dockerfile"] = text
	labtest.Write(t, dir, files)
	labtest.Must(lab.Exec(labtest.Context(t, time.Minute), buildctl(t, m.daemon.Addr, dir)))(t)
}

// policy is a random one, of which the ages are about those of the records by a clock
// that is moved.
func (m mixed) policy(records []*cachemanagerv1.Record, moved time.Duration) *cachemanagerv1.Policy {
	var total int64
	for _, r := range records {
		total += r.GetSizeBytes()
	}
	p := &cachemanagerv1.Policy{}
	types := []cachemanagerv1.RecordType{
		cachemanagerv1.RecordType_RECORD_TYPE_REGULAR, cachemanagerv1.RecordType_RECORD_TYPE_SOURCE_LOCAL,
		cachemanagerv1.RecordType_RECORD_TYPE_EXEC_CACHE_MOUNT, cachemanagerv1.RecordType_RECORD_TYPE_HISTORY,
	}
	for i := range 1 + m.random.IntN(3) {
		rule := &cachemanagerv1.Rule{Name: fmt.Sprint("r", i)}
		if m.random.IntN(2) == 0 {
			rule.Match = &cachemanagerv1.Match{Types: []cachemanagerv1.RecordType{types[m.random.IntN(len(types))]}}
			if m.random.IntN(3) == 0 {
				rule.Match.MinUsageCount = ptr(int64(2))
			}
		}
		switch m.random.IntN(6) {
		case 0:
			rule.Protect = true
		case 1, 2:
			rule.Keep = &cachemanagerv1.Keep{Age: durationpb.New(moved + time.Duration(m.random.IntN(8_000))*time.Millisecond)}
		case 3, 4:
			rule.Keep = &cachemanagerv1.Keep{Bytes: ptr(m.random.Int64N(total + 1))}
		default:
			rule.Keep = &cachemanagerv1.Keep{Records: ptr(m.random.Int64N(int64(len(records)) + 1)), Scope: cachemanagerv1.Scope(m.random.IntN(5))} //nolint:gosec // of the enum
		}
		p.Rules = append(p.Rules, rule)
	}
	if m.random.IntN(4) == 0 {
		p.Budget = &cachemanagerv1.Budget{Records: ptr(m.random.Int64N(20))}
	}
	return p
}

// What a plan says is what a real daemon loses, no more and no less, in the plan's
// order: for random builds, pins, policies, and ages by a clock that is moved.
func TestS4_PlansComeTrue(t *testing.T) {
	const moved = 100 * time.Hour
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute+time.Duration(rounds(t, 40))*5*time.Second)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	work := mixed{daemon, labtest.Must(image.PushBase(ctx, registry.Addr))(t), rand.New(rand.NewPCG(seed, 0))} //nolint:gosec // to be told again
	m := startMovedCacheManager(t, l, manual(), moved, daemon)
	for range 4 {
		work.build(t)
	}
	went := 0
	soaked(t, &went)
	for round := range rounds(t, 40) {
		for range 1 + work.random.IntN(2) {
			work.build(t)
		}
		m.repin(t, work.random)
		policy := work.policy(m.records(t), moved)
		time.Sleep(1100 * time.Millisecond) // what was used in the last second counts as in use
		plan, verdicts := m.plan(t, policy)
		p := m.prune(labtest.Context(t, time.Minute), &cachemanagerv1.PruneRequest{
			By: &cachemanagerv1.PruneRequest_PlanDigest{PlanDigest: plan.GetDigest()}, Force: true,
		})
		if p.err != nil {
			t.Fatalf("round %d: %v", round, p.err)
		}
		want, got := idsOf(verdicts, remove), idsOf(p.removed, remove)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) || len(p.kept) > 0 || p.finished.GetState() == cachemanagerv1.RunState_RUN_STATE_FAILED {
			t.Fatalf("round %d, policy %v:\nplanned %v\nremoved %v\nkept %v\nrun %v", round, policy, want, got, p.kept, p.finished)
		}
		for _, v := range verdicts {
			if v.GetCertainty() != cachemanagerv1.Certainty_CERTAINTY_CERTAIN || v.GetExplanation() == "" {
				t.Errorf("round %d: %v", round, v)
			}
		}
		left := []string{}
		for _, r := range m.records(t) {
			left = append(left, r.GetId())
		}
		stays := idsOf(verdicts, keep)
		slices.Sort(left)
		slices.Sort(stays)
		if !slices.Equal(left, stays) {
			t.Fatalf("round %d, policy %v:\nto stay %v\nleft    %v", round, policy, stays, left)
		}
		went += len(got)
	}
	if went == 0 {
		t.Error("nothing ever went")
	}
	t.Logf("%d records went", went)
}

// repin removes pins, and pins a record or what matches.
func (m cacheManager) repin(t *testing.T, random *rand.Rand) {
	t.Helper()
	ctx := labtest.Context(t, time.Minute)
	for _, p := range labtest.Must(m.api.ListPins(ctx, &cachemanagerv1.ListPinsRequest{}))(t).GetPins() {
		if random.IntN(2) == 0 {
			labtest.Must(m.api.Unpin(ctx, &cachemanagerv1.UnpinRequest{PinId: p.GetId()}))(t)
		}
	}
	records := m.records(t)
	switch random.IntN(4) {
	case 0:
		r := records[random.IntN(len(records))]
		labtest.Must(m.api.Pin(ctx, &cachemanagerv1.PinRequest{Target: &cachemanagerv1.PinRequest_Record{
			Record: &cachemanagerv1.RecordRef{Cache: r.GetCache(), Id: r.GetId()},
		}}))(t)
	case 1:
		labtest.Must(m.api.Pin(ctx, &cachemanagerv1.PinRequest{Target: &cachemanagerv1.PinRequest_Match{
			Match: &cachemanagerv1.Match{Description: fmt.Sprintf("COPY f%d", random.IntN(4))},
		}}))(t)
	}
}

// startMovedCacheManager runs one whose clock is moved.
func startMovedCacheManager(t *testing.T, l *lab.Lab, cfg *configv1.CacheManagerConfig, moved time.Duration, daemons ...*lab.Buildkitd) cacheManager {
	t.Helper()
	return startCacheManagerWith(t, l, cfg, lab.ServiceOptions{Clock: moved}, daemons...)
}

// A plan is carried out once, within its time; a dry run removes nothing; the same
// request id is the same run; what was used since the plan stays.
func TestS4_PlanThenPrune(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	m := startCacheManager(t, l, manual(), nil, daemon)
	dirs := []string{t.TempDir(), t.TempDir()}
	for i, dir := range dirs {
		labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY data /data\n", "data": fmt.Sprint(i)})
		labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir)))(t)
	}
	time.Sleep(1200 * time.Millisecond)
	nothing := &cachemanagerv1.Policy{Rules: []*cachemanagerv1.Rule{{Name: "all", Keep: &cachemanagerv1.Keep{Records: ptr(int64(0))}}}}
	before := len(m.records(t))

	dry := m.prune(ctx, &cachemanagerv1.PruneRequest{By: &cachemanagerv1.PruneRequest_Policy{Policy: nothing}})
	if dry.err != nil || !dry.finished.GetDryRun() || len(dry.removed) != before || len(m.records(t)) != before {
		t.Errorf("dry: %v, %d of %d", dry.err, len(dry.removed), before)
	}
	all := m.prune(ctx, &cachemanagerv1.PruneRequest{By: &cachemanagerv1.PruneRequest_Policy{Policy: nothing}, Force: true})
	refused(t, all.err, codes.FailedPrecondition, "WRONG_STATE", "")

	plan, _ := m.plan(t, nothing)
	if !plan.GetRemovesAll() || plan.GetRemove().GetRecords() != int64(before) {
		t.Errorf("plan %v", plan)
	}
	labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dirs[1])))(t) // used since
	by := &cachemanagerv1.PruneRequest_PlanDigest{PlanDigest: plan.GetDigest()}
	p := m.prune(ctx, &cachemanagerv1.PruneRequest{By: by, Force: true, RequestId: "one"})
	if p.err != nil || len(p.removed) == 0 || len(p.kept) == 0 || len(p.removed)+len(p.kept) != before {
		t.Fatalf("%v: %d removed, %d kept, of %d", p.err, len(p.removed), len(p.kept), before)
	}
	for _, v := range p.kept {
		switch v.GetReason() {
		case cachemanagerv1.VerdictReason_VERDICT_REASON_USED_SINCE, cachemanagerv1.VerdictReason_VERDICT_REASON_IN_USE, cachemanagerv1.VerdictReason_VERDICT_REASON_CHILD:
		default:
			t.Errorf("kept: %v", v)
		}
	}
	if out := labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dirs[1])))(t); !strings.Contains(out.Stderr, "CACHED") {
		t.Errorf("what was used since the plan is gone:\n%s", out.Stderr)
	}
	refused(t, m.prune(ctx, &cachemanagerv1.PruneRequest{By: by, Force: true}).err, codes.Aborted, "PLAN_STALE", "")
	unknown := &cachemanagerv1.PruneRequest_PlanDigest{PlanDigest: "sha256:" + strings.Repeat("0", 64)}
	refused(t, m.prune(ctx, &cachemanagerv1.PruneRequest{By: unknown, Force: true}).err, codes.NotFound, "NOT_FOUND", "")

	run := labtest.Must(m.api.GetRun(ctx, &cachemanagerv1.GetRunRequest{RunId: p.finished.GetId(), PageSize: 1000}))(t)
	if len(run.GetVerdicts()) != before || run.GetRun().GetRemoved().GetRecords() != int64(len(p.removed)) {
		t.Errorf("the run as it is kept: %d verdicts, %v", len(run.GetVerdicts()), run.GetRun())
	}
	again := m.prune(ctx, &cachemanagerv1.PruneRequest{Force: true, RequestId: "one"})
	if again.err != nil || again.finished.GetId() != p.finished.GetId() || len(again.removed) != len(p.removed) {
		t.Errorf("the same request id: %v, %v", again.err, again.finished)
	}
	runs := labtest.Must(m.api.ListRuns(ctx, &cachemanagerv1.ListRunsRequest{PageSize: 2}))(t)
	if len(runs.GetRuns()) != 2 || runs.GetRuns()[0].GetId() != p.finished.GetId() || runs.GetNextPageToken() == "" {
		t.Errorf("runs %v", runs)
	}
}

// Two cache managers never run on one daemon at once; when one is gone, the other
// takes over.
func TestS4_TwoManagersOneDaemon(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	busy := &configv1.CacheManagerConfig{Interval: durationpb.New(200 * time.Millisecond)}
	first := startCacheManager(t, l, busy, nil, daemon)
	labtest.Eventually(t, 10*time.Second, "runs of the first", func() bool {
		n, _ := strconv.Atoi(metric(t, first.Service, "kiln_cache_runs_total", `outcome="succeeded"`))
		return n > 2
	})
	second := startCacheManager(t, l, &configv1.CacheManagerConfig{Interval: durationpb.New(200 * time.Millisecond)}, nil, daemon)
	p := second.prune(ctx, &cachemanagerv1.PruneRequest{Force: true})
	refused(t, p.err, codes.AlreadyExists, "ALREADY_EXISTS", "")
	for range 5 { // It does no harm to the first one's runs either.
		time.Sleep(300 * time.Millisecond)
		refused(t, second.prune(ctx, &cachemanagerv1.PruneRequest{Force: true}).err, codes.AlreadyExists, "ALREADY_EXISTS", "")
	}
	if n := metric(t, second.Service, "kiln_cache_runs_total", `outcome="succeeded"`); n != "" {
		t.Errorf("the second made %s runs", n)
	}
	if n := metric(t, first.Service, "kiln_cache_runs_total", `outcome="failed"`); n != "" {
		t.Errorf("%s runs of the first failed:\n%s", n, first.Tail(20))
	}
	if err := first.Kill(); err != nil { // with -9
		t.Fatal(err)
	}
	labtest.Eventually(t, 30*time.Second, "runs of the second", func() bool {
		return metric(t, second.Service, "kiln_cache_runs_total", `outcome="succeeded"`) != ""
	})
}
