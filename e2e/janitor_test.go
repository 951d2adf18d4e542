package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/testkit"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// janitor is a running kiln-janitor.
type janitor struct {
	*lab.Service
	api janitorv1.JanitorServiceClient
}

// startJanitor runs one that looks after a registry, several times a second.
func startJanitor(t *testing.T, l *lab.Lab, registry *configv1.RegistryConfig, env ...string) janitor {
	t.Helper()
	s := labtest.Must(l.StartJanitor(labtest.Context(t, time.Minute), &configv1.JanitorConfig{
		Registry: registry, CheckInterval: durationpb.New(200 * time.Millisecond),
	}, lab.ServiceOptions{Env: env, Unhealthy: true}))(t)
	conn := labtest.Must(lab.Dial(s.Addr))(t)
	l.OnClose("connection", func(context.Context) error { return conn.Close() })
	return janitor{Service: s, api: janitorv1.NewJanitorServiceClient(conn)}
}

// check does the checks and returns them by name, and the state of all.
func (j janitor) check(t *testing.T) (map[string]*janitorv1.Check, janitorv1.CheckState) {
	t.Helper()
	res := labtest.Must(j.api.CheckRegistry(labtest.Context(t, time.Minute), &janitorv1.CheckRegistryRequest{}))(t)
	checks := map[string]*janitorv1.Check{}
	for _, c := range res.GetChecks() {
		checks[c.GetName()] = c
		if (c.GetRemedy() == "") != (c.GetState() == ok) {
			t.Errorf("%s is %s with the remedy %q", c.GetName(), c.GetState(), c.GetRemedy())
		}
	}
	return checks, res.GetState()
}

const (
	ok      = janitorv1.CheckState_CHECK_STATE_OK
	unknown = janitorv1.CheckState_CHECK_STATE_UNKNOWN
	fail    = janitorv1.CheckState_CHECK_STATE_FAIL
)

func (j janitor) waitHealth(t *testing.T, want fmt.Stringer) {
	t.Helper()
	labtest.Eventually(t, 20*time.Second, want.String(), func() bool { return healthOf(t, j.Addr).String() == want.String() })
}

// stored adds up the files of a registry's storage that hold blobs.
func stored(t *testing.T, storage string) (blobs, bytes int64) {
	t.Helper()
	files := labtest.Must(filepath.Glob(filepath.Join(storage, "docker/registry/v2/blobs/sha256/*/*/data")))(t)
	for _, f := range files {
		bytes += labtest.Must(os.Stat(f))(t).Size()
	}
	return int64(len(files)), bytes
}

// A healthy registry passes all checks. When it is stopped, each says so, with
// what to do, and the janitor is not serving until it is back.
func TestS6_RegistryThatIsStoppedAndComesBack(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	j := startJanitor(t, l, &configv1.RegistryConfig{Address: registry.Addr, StorageRoot: registry.Storage})
	j.waitHealth(t, serving)
	labtest.Must(image.PushBase(ctx, registry.Addr))(t)

	checks, state := j.check(t)
	for _, name := range []string{"reachable", "auth", "latency", "catalog", "delete"} {
		if checks[name].GetState() != ok {
			t.Errorf("%s: %v", name, checks[name])
		}
	}
	if disk := checks["disk"]; disk.GetDisk().GetFreeBytes() <= 0 || disk.GetDisk().GetTotalBytes() < disk.GetDisk().GetFreeBytes() {
		t.Errorf("disk: %v", disk)
	}
	if others := max(checks["disk"].GetState(), checks["notifications"].GetState()); state != max(ok, others) { // The disk of the machine may be nearly full.
		t.Errorf("all in all %s", state)
	}
	if checks["catalog"].GetRepositories() != 1 || !checks["delete"].GetDeleteEnabled() || checks["latency"].GetLatency().AsDuration() <= 0 {
		t.Errorf("figures: %v", checks)
	}
	if v := metric(t, j.Service, "kiln_registry_check", `check="reachable"`, `state="ok"`); v != "1" {
		t.Errorf("the metric says %q", v)
	}

	if err := registry.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	j.waitHealth(t, notServing)
	checks, state = j.check(t)
	if c := checks["reachable"]; state != fail || c.GetState() != fail ||
		!strings.Contains(c.GetMessage(), "connection refused") || !strings.Contains(c.GetRemedy(), registry.Addr) {
		t.Errorf("all in all %s, %v", state, c)
	}
	for _, name := range []string{"auth", "latency", "catalog", "delete"} {
		if checks[name].GetState() != unknown {
			t.Errorf("without a registry, %s: %v", name, checks[name])
		}
	}
	_, err := j.api.GetUsage(ctx, &janitorv1.GetUsageRequest{})
	refused(t, err, codes.Unavailable, "REGISTRY_UNAVAILABLE", "")
	if v := metric(t, j.Service, "kiln_registry_check", `check="reachable"`, `state="fail"`); v != "1" {
		t.Errorf("the metric says %q", v)
	}

	labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{Addr: registry.Addr, Storage: registry.Storage}))(t)
	j.waitHealth(t, serving)
	if checks, _ := j.check(t); checks["reachable"].GetState() != ok {
		t.Errorf("back again: %v", checks["reachable"])
	}
}

// A registry that hangs is told from one that is well, in time, also to a caller
// who asks for the usage.
func TestS6_RegistryThatHangs(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	j := startJanitor(t, l, &configv1.RegistryConfig{Address: registry.Addr})
	j.waitHealth(t, serving)
	if err := registry.Pause(); err != nil {
		t.Fatal(err)
	}
	j.waitHealth(t, notServing)
	started := time.Now()
	checks, _ := j.check(t)
	if c := checks["reachable"]; c.GetState() != fail || !strings.Contains(c.GetMessage(), "in time") {
		t.Errorf("%v", c)
	}
	_, err := j.api.GetUsage(ctx, &janitorv1.GetUsageRequest{})
	refused(t, err, codes.Unavailable, "REGISTRY_UNAVAILABLE", "")
	if took := time.Since(started); took > 20*time.Second {
		t.Errorf("both answers took %s", took)
	}
	if err := registry.Resume(); err != nil {
		t.Fatal(err)
	}
	j.waitHealth(t, serving)
}

// A registry that does not allow deletes, and a storage that is another's, are
// found.
func TestS6_DeletesOffAndWrongStorage(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	labtest.Must(image.PushBase(ctx, registry.Addr))(t)
	off, config := labtest.Must(lab.FreeAddr())(t), filepath.Join(l.Dir, "off.yml")
	labtest.Write(t, l.Dir, map[string]string{"off.yml": fmt.Sprintf(
		"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %q\nhttp:\n  addr: %q\n", registry.Storage, off)})
	labtest.Must(l.Run(lab.Command{Name: "registry-off", Path: labtest.Must(lab.Bin("registry"))(t), Args: []string{"serve", config}}))(t)

	j := startJanitor(t, l, &configv1.RegistryConfig{Address: off, StorageRoot: t.TempDir()})
	j.waitHealth(t, serving)
	checks, state := j.check(t)
	if c := checks["delete"]; state != fail || c.GetState() != fail || c.GetDeleteEnabled() || !strings.Contains(c.GetRemedy(), "storage.delete.enabled: true") {
		t.Errorf("all in all %s, %v", state, c)
	}
	if c := checks["disk"]; c.GetState() != fail || !strings.Contains(c.GetRemedy(), "rootdirectory") {
		t.Errorf("%v", c)
	}
	usage := labtest.Must(j.api.GetUsage(ctx, &janitorv1.GetUsageRequest{}))(t)
	if usage.GetTotal().GetStorage().GetError() == nil {
		t.Errorf("usage with the wrong storage: %v", usage.GetTotal())
	}

	_, err := j.api.CheckRegistry(ctx, &janitorv1.CheckRegistryRequest{Checks: []string{"tea"}})
	refused(t, err, codes.InvalidArgument, "INVALID_FIELD", "checks")
	_, err = j.api.PlanRun(ctx, &janitorv1.PlanRunRequest{})
	refused(t, err, codes.FailedPrecondition, "WRONG_STATE", "")
	_, err = j.tryRun(ctx, &janitorv1.RunRequest{Force: true})
	refused(t, err, codes.FailedPrecondition, "WRONG_STATE", "")
	if runs := labtest.Must(j.api.ListRuns(ctx, &janitorv1.ListRunsRequest{}))(t).GetRuns(); len(runs) > 0 {
		t.Errorf("runs: %v", runs)
	}
}

// The usage is what the registry stores, to the byte: images of two platforms,
// attestations and the cache of a build, shared blobs counted once.
func TestS5_UsageIsWhatIsStored(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	base := labtest.Must(image.PushBase(ctx, registry.Addr))(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM " + base + "\nRUN echo " + unique() + " >/x\n"})
	labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir,
		"--output=type=image,push=true,name="+registry.Addr+"/app/web:1",
		"--export-cache=type=registry,mode=max,image-manifest=true,ref="+registry.Addr+"/cache/web:main")))(t)
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir, "--opt=platform=linux/amd64,linux/arm64", "--opt=attest:provenance=mode=max",
		"--output=type=image,push=true,name="+registry.Addr+"/app/multi:1")))(t)

	j := startJanitor(t, l, &configv1.RegistryConfig{Address: registry.Addr, StorageRoot: registry.Storage})
	usage := labtest.Must(j.api.GetUsage(ctx, &janitorv1.GetUsageRequest{WithTags: true}))(t)
	total := usage.GetTotal()
	blobs, bytes := stored(t, registry.Storage)
	if total.GetBlobs() != blobs || total.GetDeduplicatedBytes() != bytes {
		t.Errorf("%d blobs of %d bytes by the API, %d of %d on the disk", total.GetBlobs(), total.GetDeduplicatedBytes(), blobs, bytes)
	}
	if s := total.GetStorage(); s.GetBlobs() != blobs || s.GetBlobBytes() != bytes || s.GetUntaggedBytes() != 0 || s.GetDisk().GetFreeBytes() <= 0 {
		t.Errorf("storage: %v", s)
	}
	byName, sum := map[string]*janitorv1.RepositoryUsage{}, int64(0)
	for _, r := range usage.GetRepositories() {
		byName[r.GetRepository()] = r
		sum += r.GetOwnBytes()
		if r.GetOwnBytes() != r.GetSharedBytes()+r.GetExclusiveBytes() || r.GetBrokenManifests() != 0 || r.GetError() != nil {
			t.Errorf("%v", r)
		}
	}
	if total.GetRepositories() != 4 || len(byName) != 4 || total.GetSumOwnBytes() != sum || sum <= bytes {
		t.Errorf("%v", usage)
	}
	web, multi, cache := byName["app/web"], byName["app/multi"], byName["cache/web"]
	if web.GetSharedBytes() == 0 || cache.GetSharedBytes() == 0 || web.GetManifests() != 1 || cache.GetManifests() != 1 {
		t.Errorf("image and cache of one build: %v, %v", web, cache)
	}
	// An index with two images, and an attestation for each.
	if multi.GetManifests() != 5 || multi.GetTagUsages()[0].GetDigest() != labtest.Must(image.Digest(ctx, registry.Addr+"/app/multi:1"))(t) {
		t.Errorf("two platforms: %v", multi)
	}

	// What no tag reaches any more is still stored, and said to be.
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /other\n"})
	labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir, "--output=type=image,push=true,name="+registry.Addr+"/app/web:1")))(t)
	_, bytes = stored(t, registry.Storage)
	total = labtest.Must(j.api.GetUsage(ctx, &janitorv1.GetUsageRequest{}))(t).GetTotal()
	if untagged := total.GetStorage().GetUntaggedBytes(); untagged == 0 || untagged != bytes-total.GetDeduplicatedBytes() {
		t.Errorf("%d bytes are stored, tags reach %d, untagged %d", bytes, total.GetDeduplicatedBytes(), untagged)
	}
}

// The pages of the usage are of one look, in order, and hold each repository once.
func TestS5_UsageInPages(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	names := []string{registry.Addr + "/p/1:1", registry.Addr + "/p/2:1", registry.Addr + "/p/3:1", registry.Addr + "/q:1"}
	labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir, `--output=type=image,push=true,"name=`+strings.Join(names, ",")+`"`)))(t)
	j := startJanitor(t, l, &configv1.RegistryConfig{Address: registry.Addr})

	req := &janitorv1.GetUsageRequest{Repositories: []string{"p/*"}, PageSize: 2}
	first := labtest.Must(j.api.GetUsage(ctx, req))(t)
	req.PageToken = first.GetNextPageToken()
	second := labtest.Must(j.api.GetUsage(ctx, req))(t)
	var got []string
	for _, r := range slices.Concat(first.GetRepositories(), second.GetRepositories()) {
		got = append(got, r.GetRepository())
	}
	if !slices.Equal(got, []string{"p/1", "p/2", "p/3"}) || second.GetNextPageToken() != "" || !second.GetTime().AsTime().Equal(first.GetTime().AsTime()) {
		t.Errorf("pages %v, %v", first, second)
	}
	req.Repositories = nil
	_, err := j.api.GetUsage(ctx, req)
	refused(t, err, codes.InvalidArgument, "INVALID_FIELD", "page_token")
	_, err = j.api.GetUsage(ctx, &janitorv1.GetUsageRequest{Repositories: []string{"nope"}})
	refused(t, err, codes.NotFound, "NOT_FOUND", "")
}

// One trace holds the janitor's look at the registry and each request that it
// makes for it.
func TestS9_OneTraceOfAJanitorCall(t *testing.T) {
	collector := testkit.NewOTLP(t)
	addr := strings.TrimPrefix(collector.Endpoint(), "http://")
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	j := startJanitor(t, l, &configv1.RegistryConfig{Address: registry.Addr}, lab.OTLPEnv(addr, "kiln-janitor")...)
	labtest.Must(image.PushBase(ctx, registry.Addr))(t)
	labtest.Must(j.api.GetUsage(ctx, &janitorv1.GetUsageRequest{}))(t)
	labtest.Eventually(t, 20*time.Second, "requests to the registry in the trace of the call", func() bool {
		spans := map[string]testkit.Span{}
		for _, s := range collector.Spans() {
			spans[s.SpanID] = s
		}
		for _, s := range spans {
			survey := spans[s.ParentID]
			if call := spans[survey.ParentID]; s.Name == "registry HEAD" && survey.Name == "registry survey" &&
				strings.HasSuffix(call.Name, "JanitorService/GetUsage") && call.TraceID == s.TraceID {
				return true
			}
		}
		return false
	})
	for _, s := range collector.Spans() {
		if s.ParentID == "" && strings.HasPrefix(s.Name, "registry GET") {
			t.Errorf("health checks leave spans: %s", s.Name)
			break
		}
	}
}
