package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/failpoint/find"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

func directoryRef(path string) *cachemanagerv1.CacheRef {
	return &cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Directory{Directory: path}}
}

// localCache is a policy that reads from a tag of a directory and writes to it.
func localCache(dir, tag string) *builderv1.CachePolicy {
	return &builderv1.CachePolicy{
		Mode:    builderv1.CacheMode_CACHE_MODE_EXPLICIT,
		Imports: []*builderv1.CacheEntry{{Type: "local", Attributes: map[string]string{"src": dir, "tag": tag}}},
		Exports: []*builderv1.CacheEntry{{Type: "local", Attributes: map[string]string{"dest": dir, "tag": tag, "mode": "max"}}},
	}
}

// defects are what is wrong in all directories, but for what goes by itself.
func (m cacheManager) defects(t *testing.T) (all []*cachemanagerv1.Defect) {
	t.Helper()
	stream := labtest.Must(m.api.VerifyCache(labtest.Context(t, time.Minute), &cachemanagerv1.VerifyCacheRequest{}))(t)
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		switch d := event.GetDefect(); d.GetKind() {
		case cachemanagerv1.DefectKind_DEFECT_KIND_UNSPECIFIED, cachemanagerv1.DefectKind_DEFECT_KIND_ORPHAN, cachemanagerv1.DefectKind_DEFECT_KIND_ABORTED_INGEST:
		default:
			all = append(all, d)
		}
	}
}

func (m cacheManager) runs(t *testing.T) []*cachemanagerv1.Run {
	t.Helper()
	return labtest.Must(m.api.ListRuns(labtest.Context(t, time.Minute), &cachemanagerv1.ListRunsRequest{PageSize: 1000}))(t).GetRuns()
}

func (m cacheManager) clean(ctx context.Context, req *cachemanagerv1.CleanCacheRequest) (repaired []*cachemanagerv1.Defect, removed []*cachemanagerv1.Verdict, run *cachemanagerv1.Run, err error) {
	stream, err := m.api.CleanCache(ctx, req)
	for err == nil {
		var event *cachemanagerv1.CleanCacheResponse
		if event, err = stream.Recv(); err != nil {
			break
		}
		switch e := event.GetEvent().(type) {
		case *cachemanagerv1.CleanCacheResponse_Repaired:
			repaired = append(repaired, e.Repaired)
		case *cachemanagerv1.CleanCacheResponse_Removed:
			removed = append(removed, e.Removed)
		case *cachemanagerv1.CleanCacheResponse_Finished:
			run = e.Finished
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return repaired, removed, run, err
}

// Four builds at a time read their cache from a directory and write it there, while the
// cache manager removes from it as hard as its leases allow, and from the daemon all that
// there is: each build succeeds, caches that were leased are found, nothing that a tag
// names is missing, and the directory ends within its cap.
func TestS4_LocalDirectoryBesideExportersAndImporters(t *testing.T) {
	const loops, tags, capBytes = 4, 8, 2_500_000
	span := soakTime(t, 20*time.Second)
	s := ownStack(t, lab.StackOptions{})
	dir := s.dir(t, nil)
	cfg := &configv1.CacheManagerConfig{
		Interval:    durationpb.New(100 * time.Millisecond),
		Directories: []*configv1.CacheDirectory{{Path: dir, Grace: durationpb.New(0)}},
		PolicyFile: policyFile(t, fmt.Sprintf(`rules:
- {name: daemon, match: {daemons: [a]}, keep: {records: 0}}
- {name: cap, match: {types: [local_tag]}, keep: {bytes: %d}}
`, capBytes)),
	}
	m := startCacheManager(t, s.lab, cfg, nil, s.Buildkitd)
	builder := labtest.Must(s.lab.StartBuilder(labtest.Context(t, time.Minute), lab.BuilderConfig(&configv1.BuilderConfig{
		AllowedRoots: []string{s.src}, CacheManager: &configv1.CacheManagerClient{Address: m.Addr},
	}, s.Buildkitd.Addr, s.Registry.Addr), lab.ServiceOptions{}))(t)
	api := labtest.Must(dial(s.lab, builder.Addr))(t)

	var done, found atomic.Int64
	// A build whose cache is not all there runs its steps, and says nothing. When each step
	// ran, by builds that wait for it: whether such a build had its cache by then. One that had
	// none yet runs it for all.
	var mu sync.Mutex
	needless := map[time.Time][]bool{}
	var operations int
	soaked(t, &operations)
	var group sync.WaitGroup
	end := time.Now().Add(span)
	for loop := range loops {
		group.Go(func() {
			for time.Now().Before(end) && !t.Failed() {
				tag := rand.IntN(tags)
				// By the time that the layer of the cached step is read, the import was a while ago.
				spec := dockerfile(fmt.Sprintf("FROM %[1]s AS slow\nRUN sleep 0.3 && echo %[2]s >/s\nFROM %[1]s\n"+
					"RUN head -c 400000 /dev/urandom >/x && echo %[3]d\nCOPY --from=slow /s /s\nRUN wc -c </x >/y\n", s.base, unique(), tag))
				spec.Cache = localCache(dir, fmt.Sprint("tag", tag))
				r := readBuild(labtest.Context(t, time.Minute), api, spec)
				if r.err != nil || r.outcome.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
					t.Errorf("loop %d: %v %v", loop, r.err, r.outcome)
					return
				}
				if ran, imported := stepAndImport(r); ran.IsZero() {
					found.Add(1)
				} else {
					mu.Lock()
					needless[ran] = append(needless[ran], !imported.IsZero() && imported.Before(ran))
					mu.Unlock()
				}
				done.Add(1)
			}
		})
	}
	group.Wait()
	operations = int(done.Load())
	for ran, had := range needless {
		if !slices.Contains(had, false) {
			t.Errorf("a step ran at %v that all %d builds of it had a lease on", ran, len(had))
		}
	}
	if d := m.defects(t); len(d) > 0 {
		t.Errorf("%v", d)
	}
	labtest.Eventually(t, 10*time.Second, "the directory within its cap", func() bool {
		u := labtest.Must(m.api.GetUsage(labtest.Context(t, time.Minute), &cachemanagerv1.GetUsageRequest{Caches: []*cachemanagerv1.CacheRef{directoryRef(dir)}}))(t)
		var onDisk int64
		labtest.Must(0, filepath.Walk(filepath.Join(dir, "blobs"), func(_ string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().IsRegular() {
				onDisk += info.Size()
			}
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return err
		}))(t)
		return u.GetUsage().GetTotal().GetSizeBytes() <= capBytes && onDisk <= capBytes
	})
	removed := 0
	for _, r := range m.runs(t) {
		for _, c := range r.GetCaches() {
			if c.GetCache().GetDirectory() == dir {
				removed += int(c.GetRemoved().GetRecords())
			}
		}
	}
	t.Logf("%d builds, %d of them with the step from the directory; %d tags removed beside them", done.Load(), found.Load(), removed)
	if found.Load() < 2 || removed < 2 {
		t.Error("the test shows nothing")
	}
}

// stepAndImport are when the step ran that a cache would spare, and when the build began
// to read its cache; zero when it did not.
func stepAndImport(r result) (ran, imported time.Time) {
	for _, e := range r.events {
		switch step := e.GetStep(); {
		case strings.HasPrefix(step.GetName(), "importing cache manifest from ") && imported.IsZero():
			imported = step.GetStartTime().AsTime()
		case step.GetState() == builderv1.StepState_STEP_STATE_DONE && strings.Contains(step.GetName(), "] RUN head -c "):
			ran = step.GetStartTime().AsTime()
		}
	}
	return ran, imported
}

// A build by each client writes a directory of its own; what the cache manager says of
// it, removes, shrinks, repairs and empties is so, and builds use what is left.
func TestS4_LocalDirectory(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	ctx := labtest.Context(t, 2*time.Minute)
	dir := filepath.Join(s.dir(t, nil), "cache") // which nobody has made yet
	cfg := manual()
	cfg.Directories = []*configv1.CacheDirectory{{Path: dir, Grace: durationpb.New(0)}}
	m := startCacheManager(t, s.lab, cfg, nil)
	if u := m.usage(t); u.GetTotal().GetRecords() != 0 {
		t.Errorf("%v", u)
	}
	src := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\nRUN head -c 1000000 /dev/urandom >/one\nRUN head -c 2000000 /dev/urandom >/two\n"})
	build := func(tag string) string {
		t.Helper()
		s.forget(t)
		out := labtest.Must(lab.Exec(ctx, lab.Command{
			Path: labtest.Must(lab.Bin("kiln"))(t), Args: []string{"build", src, src, tag, "--cache-dir", dir, "--progress", "plain"},
			Env: []string{"KILN_BUILDER=" + s.Builder.Addr, "KILN_CACHE_MANAGER=" + m.Addr},
		}))(t)
		return out.Stdout + out.Stderr
	}
	if out := build("web:1"); strings.Contains(out, "no lease") {
		t.Error(out)
	}
	if out := build("web:1"); !strings.Contains(out, "2 steps cached") && !strings.Contains(out, "3 of 3 steps cached") {
		t.Errorf("the cache was not found:\n%s", out)
	}
	before := m.records(t)
	if len(before) != 1 || before[0].GetId() != "web" || before[0].GetType() != cachemanagerv1.RecordType_RECORD_TYPE_LOCAL_TAG || before[0].GetUsageCount() != 4 ||
		before[0].GetSizeBytes() < 3_000_000 || !slices.Equal(before[0].GetProjects(), []string{"web"}) {
		t.Fatalf("%v", before)
	}

	// One tag that is too large is made smaller, and a build uses what is left of it.
	shrink := &cachemanagerv1.Policy{Rules: []*cachemanagerv1.Rule{{Name: "cap", Keep: &cachemanagerv1.Keep{Bytes: ptr(int64(2_500_000))}}}}
	time.Sleep(1100 * time.Millisecond) // what was used a moment ago is left
	p := m.prune(ctx, &cachemanagerv1.PruneRequest{By: &cachemanagerv1.PruneRequest_Policy{Policy: shrink}, Force: true})
	if p.err != nil || len(p.removed) != 1 || p.removed[0].GetAction() != cachemanagerv1.VerdictAction_VERDICT_ACTION_SHRINK {
		t.Fatalf("%+v", p)
	}
	after := m.records(t)
	if less := before[0].GetSizeBytes() - after[0].GetSizeBytes() - p.removed[0].GetFreesBytes(); len(after) != 1 || after[0].GetSizeBytes() > 2_500_000 ||
		less < 0 || less > 2000 { // the manifest is smaller too
		t.Errorf("%v, %v", after, p.removed[0])
	}
	out := build("web:1")
	if !strings.Contains(out, "RUN head -c 1000000") || strings.Count(out, "CACHED") != 1 {
		t.Errorf("after it was made smaller, the first step should be cached and the second not:\n%s", out)
	}

	// What is corrupt is found and taken out; the next export writes it again.
	blobs := labtest.Must(filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*")))(t)
	largest := blobs[0]
	for _, blob := range blobs {
		if labtest.Must(os.Stat(blob))(t).Size() > labtest.Must(os.Stat(largest))(t).Size() {
			largest = blob
		}
	}
	labtest.Must(0, os.Chmod(largest, 0o644))(t)
	labtest.Must(0, os.Truncate(largest, 1000))(t)
	if d := m.defects(t); len(d) != 1 || d[0].GetKind() != cachemanagerv1.DefectKind_DEFECT_KIND_CORRUPT_BLOB || d[0].GetTags()[0] != "web" {
		t.Fatalf("%v", d)
	}
	repaired, _, run, err := m.clean(ctx, &cachemanagerv1.CleanCacheRequest{})
	if err != nil || len(repaired) != 1 || !run.GetDryRun() || len(m.defects(t)) != 1 {
		t.Errorf("%v %v %v", repaired, run, err)
	}
	if repaired, _, run, err = m.clean(ctx, &cachemanagerv1.CleanCacheRequest{Force: true}); err != nil || len(repaired) != 1 || len(m.defects(t)) != 0 {
		t.Errorf("%v %v %v: %v", repaired, run, err, m.defects(t))
	}
	build("web:1")
	if d := m.defects(t); len(d) != 0 {
		t.Errorf("%v", d)
	}

	// A lease keeps it from being emptied.
	lease := labtest.Must(m.api.AcquireLease(ctx, &cachemanagerv1.AcquireLeaseRequest{
		Directory: dir, Tag: "web", Mode: cachemanagerv1.LeaseMode_LEASE_MODE_IMPORT, Holder: "test",
	}))(t).GetLease()
	time.Sleep(1100 * time.Millisecond)
	if _, removed, run, err := m.clean(ctx, &cachemanagerv1.CleanCacheRequest{All: true, Force: true}); err != nil || len(removed) != 0 {
		t.Errorf("%v %v %v", removed, run, err)
	}
	labtest.Must(m.api.ReleaseLease(ctx, &cachemanagerv1.ReleaseLeaseRequest{LeaseId: lease.GetId()}))(t)
	time.Sleep(1100 * time.Millisecond)
	if _, removed, run, err := m.clean(ctx, &cachemanagerv1.CleanCacheRequest{All: true, Force: true}); err != nil || len(removed) != 1 ||
		removed[0].GetReason() != cachemanagerv1.VerdictReason_VERDICT_REASON_CLEANED {
		t.Errorf("%v %v %v", removed, run, err)
	}
	if left := labtest.Must(filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*")))(t); len(left) != 0 {
		t.Errorf("%d blobs are left", len(left))
	}
	if out := build("web:1"); strings.Contains(out, "CACHED") {
		t.Errorf("%s", out)
	}

	// Bad input.
	_, err = m.api.AcquireLease(ctx, &cachemanagerv1.AcquireLeaseRequest{Directory: "/none", Mode: cachemanagerv1.LeaseMode_LEASE_MODE_IMPORT})
	refused(t, err, codes.NotFound, "NOT_FOUND", "")
	_, err = m.api.RenewLease(ctx, &cachemanagerv1.RenewLeaseRequest{LeaseId: lease.GetId()})
	refused(t, err, codes.NotFound, "NOT_FOUND", "")
	labtest.Must(0, os.WriteFile(filepath.Join(dir, "index.json"), []byte("{"), 0o644))(t) //nolint:gosec // as BuildKit writes it
	p = m.prune(ctx, &cachemanagerv1.PruneRequest{Force: true})
	if p.err != nil || p.finished.GetState() != cachemanagerv1.RunState_RUN_STATE_FAILED || codes.Code(p.finished.GetError().GetCode()) != codes.FailedPrecondition { //nolint:gosec // a code
		t.Errorf("%v %v", p.finished, p.err)
	}
}

// kill -9 of the cache manager at each step that changes a directory: all that its tags
// name is there afterwards, and a cache manager that comes after finishes what was begun.
func TestS4_LocalKilledAtEachStep(t *testing.T) {
	root := labtest.Must(lab.RepoRoot())(t)
	points := labtest.Must(find.Names(filepath.Join(root, "services", "cachemanager")))(t)
	if len(points) < 7 {
		t.Fatalf("only %d failpoints: %v", len(points), points)
	}
	s := ownStack(t, lab.StackOptions{})
	for _, point := range points {
		t.Run(point, func(t *testing.T) { s.dieCollecting(t, point) })
	}
}

func (s *stack) dieCollecting(t *testing.T, point string) {
	ctx := labtest.Context(t, time.Minute)
	made := s.dir(t, nil)
	dir := made + "-kept"
	export := func(tag, text string) {
		t.Helper()
		src := s.dir(t, map[string]string{"Dockerfile": "FROM " + s.base + "\n" + text})
		labtest.Must(lab.Exec(ctx, buildctl(t, s.Buildkitd.Addr, src, "--export-cache", "type=local,mode=max,dest="+made+",tag="+tag)))(t)
	}
	export("kept", "RUN echo kept >/kept\nRUN echo upon it >/upon\nRUN echo and upon it >/more\n")
	export("again", "RUN echo first >/first\nRUN echo second >/second\n")
	saved := labtest.Must(os.ReadFile(filepath.Join(made, "index.json")))(t)
	export("again", "RUN echo other >/other\n")
	export("last", strings.Repeat("RUN head -c 300000 /dev/urandom >/$(cat /proc/sys/kernel/random/uuid)\n", 3))

	cfg := manual()
	cfg.Interval = durationpb.New(200 * time.Millisecond)
	cfg.Directories = []*configv1.CacheDirectory{{Path: dir, Grace: durationpb.New(0)}}
	rules := "rules:\n- {name: one, keep: {records: 1}}\n- {name: small, keep: {bytes: 1.6MB}}\n" // the last one is larger
	repairs := point == "local.corrupt" || point == "local.mended"
	restores := point == "local.restored"
	if restores {
		cfg.Directories[0].Grace = durationpb.New(time.Second) // so that the trash is not emptied at once
	}
	if restores || repairs {
		rules = "rules:\n- {name: none, match: {directories: [/none]}, keep: {records: 1}}\n"
	}
	if repairs {
		cfg.Interval = durationpb.New(time.Hour)
	}
	cfg.PolicyFile = policyFile(t, rules)
	m := startCacheManagerWith(t, s.lab, cfg, lab.ServiceOptions{Failpoint: point})
	labtest.Eventually(t, 10*time.Second, "the end of the first run", func() bool { return len(m.runs(t)) > 0 && m.runs(t)[0].GetEndTime() != nil })
	labtest.Must(0, os.Rename(made, dir))(t) // now it has something to do
	switch {
	case restores:
		labtest.Eventually(t, 10*time.Second, "the trash", func() bool {
			return len(labtest.Must(filepath.Glob(filepath.Join(dir, ".kiln", "trash", "*", "*")))(t)) > 0
		})
		labtest.Must(0, os.WriteFile(filepath.Join(dir, "index.json"), saved, 0o644))(t) //nolint:gosec // as BuildKit writes it
	case repairs:
		manifest := filepath.Join(dir, "blobs", "sha256", regexp.MustCompile("sha256:([0-9a-f]{64})").FindStringSubmatch(string(saved))[1])
		labtest.Must(0, os.Chmod(manifest, 0o644))(t)
		labtest.Must(0, os.Truncate(manifest, 0))(t)
		_, _, _, _ = m.clean(ctx, &cachemanagerv1.CleanCacheRequest{Force: true}) // it dies
	}
	select {
	case <-m.Done():
	case <-time.After(20 * time.Second):
		t.Fatalf("the cache manager did not come to %s\n%s", point, m.Tail(20))
	}
	labtest.Must(0, m.Start(ctx))(t)
	if repairs || restores {
		labtest.Eventually(t, 10*time.Second, "a whole directory", func() bool {
			if repairs { // once the run that it starts with has ended
				_, _, _, _ = m.clean(ctx, &cachemanagerv1.CleanCacheRequest{Force: true})
			}
			return len(m.defects(t)) == 0
		})
		return
	}
	if d := m.defects(t); len(d) > 0 {
		t.Errorf("%v", d)
	}
	labtest.Eventually(t, 10*time.Second, "the end of what was begun", func() bool {
		left := labtest.Must(filepath.Glob(filepath.Join(dir, ".kiln", "trash", "*")))(t)
		return len(m.records(t)) == 1 && m.records(t)[0].GetSizeBytes() <= 1_600_000 && len(left) == 0
	})
	if d := m.defects(t); len(d) > 0 {
		t.Errorf("%v", d)
	}
}

// After a build, the builder asks for a run of the policy.
func TestS4_RunAfterBuild(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	m := startCacheManager(t, s.lab, manual(), nil, s.Buildkitd)
	builder := labtest.Must(s.lab.StartBuilder(labtest.Context(t, time.Minute), lab.BuilderConfig(&configv1.BuilderConfig{
		CacheManager: &configv1.CacheManagerClient{Address: m.Addr, PruneAfterBuild: durationpb.New(time.Second)},
	}, s.Buildkitd.Addr, s.Registry.Addr), lab.ServiceOptions{}))(t)
	api := labtest.Must(dial(s.lab, builder.Addr))(t)
	if r := readBuild(labtest.Context(t, time.Minute), api, dockerfile("FROM "+s.base+"\n")); r.err != nil {
		t.Fatal(r.err)
	}
	labtest.Eventually(t, 10*time.Second, "a run after the build", func() bool {
		res := labtest.Must(m.api.ListRuns(labtest.Context(t, time.Minute), &cachemanagerv1.ListRunsRequest{Filter: "trigger = BUILD"}))(t)
		return len(res.GetRuns()) > 0 && res.GetRuns()[0].GetState() == cachemanagerv1.RunState_RUN_STATE_SUCCEEDED
	})
}
