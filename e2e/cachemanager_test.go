package e2e_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/testkit"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// cacheManager is a running kiln-cachemanager.
type cacheManager struct {
	*lab.Service
	api cachemanagerv1.CacheManagerServiceClient
}

// startCacheManager runs one over daemons that are named "a", "b", and so on.
func startCacheManager(t *testing.T, l *lab.Lab, cfg *configv1.CacheManagerConfig, env []string, daemons ...*lab.Buildkitd) cacheManager {
	t.Helper()
	return startCacheManagerWith(t, l, cfg, lab.ServiceOptions{Env: env}, daemons...)
}

// policyFile writes a policy for a configuration to name.
func policyFile(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"policy.yaml": text})
	return filepath.Join(dir, "policy.yaml")
}

func startCacheManagerWith(t *testing.T, l *lab.Lab, cfg *configv1.CacheManagerConfig, opts lab.ServiceOptions, daemons ...*lab.Buildkitd) cacheManager {
	t.Helper()
	for i, d := range daemons {
		cfg.Daemons = append(cfg.Daemons, &configv1.DaemonConfig{Name: string(rune('a' + i)), Address: d.Addr})
	}
	s := labtest.Must(l.StartCacheManager(labtest.Context(t, time.Minute), cfg, opts))(t)
	conn := labtest.Must(lab.Dial(s.Addr))(t)
	l.OnClose("connection", func(context.Context) error { return conn.Close() })
	return cacheManager{Service: s, api: cachemanagerv1.NewCacheManagerServiceClient(conn)}
}

// usage is that of all daemons together.
func (m cacheManager) usage(t *testing.T) *cachemanagerv1.Usage {
	t.Helper()
	return labtest.Must(m.api.GetUsage(labtest.Context(t, time.Minute), &cachemanagerv1.GetUsageRequest{}))(t).GetUsage()
}

// metric is the value of a series of a service, such as
// `kiln_cache_runs_total{daemon="a",outcome="succeeded"}`; "" when there is none.
func metric(t *testing.T, s *lab.Service, name string, labels ...string) string {
	t.Helper()
series:
	for line := range strings.Lines(scrape(t, s)) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if !strings.HasPrefix(series, name+"{") {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(series, label) {
				continue series
			}
		}
		return value
	}
	return ""
}

// scrape is what a service tells Prometheus.
func scrape(t *testing.T, s *lab.Service) string {
	t.Helper()
	req := labtest.Must(http.NewRequestWithContext(labtest.Context(t, time.Minute), http.MethodGet, "http://"+s.HTTPAddr+"/metrics", nil))(t)
	req.Close = true
	resp := labtest.Must(http.DefaultClient.Do(req))(t)
	defer func() { _ = resp.Body.Close() }()
	return string(labtest.Must(io.ReadAll(resp.Body))(t))
}

// healthOf is what the health service at an address says.
func healthOf(t *testing.T, addr string) grpc_health_v1.HealthCheckResponse_ServingStatus {
	t.Helper()
	conn := labtest.Must(lab.Dial(addr))(t)
	defer conn.Close()
	res := labtest.Must(grpc_health_v1.NewHealthClient(conn).Check(labtest.Context(t, time.Minute), &grpc_health_v1.HealthCheckRequest{}))(t)
	return res.GetStatus()
}

const (
	serving    = grpc_health_v1.HealthCheckResponse_SERVING
	notServing = grpc_health_v1.HealthCheckResponse_NOT_SERVING
)

// What no build has used for longer than keep_age goes, whatever its type, from a
// daemon that nobody uses meanwhile, and not before.
func TestS4_UnusedRecordsGoFromAnIdleDaemon(t *testing.T) {
	const keepAge = 12 * time.Second
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	base := labtest.Must(image.PushBase(ctx, registry.Addr))(t)
	m := startCacheManager(t, l, &configv1.CacheManagerConfig{
		KeepAge: durationpb.New(keepAge), Interval: durationpb.New(200 * time.Millisecond),
	}, nil, daemon)

	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{
		"Dockerfile": "FROM " + base + "\nCOPY in /in\nRUN --mount=type=cache,target=/cache echo x >/cache/x && echo y >/y\n",
		"in":         "in",
	})
	started := time.Now()
	labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir)))(t)
	built := time.Now()

	before := m.usage(t)
	types := map[cachemanagerv1.RecordType]int64{}
	for _, u := range before.GetCaches()[0].GetTypes() {
		types[u.GetType()] = u.GetTotal().GetRecords()
	}
	for _, kind := range []cachemanagerv1.RecordType{
		cachemanagerv1.RecordType_RECORD_TYPE_REGULAR, cachemanagerv1.RecordType_RECORD_TYPE_SOURCE_LOCAL,
		cachemanagerv1.RecordType_RECORD_TYPE_EXEC_CACHE_MOUNT,
	} {
		if types[kind] == 0 {
			t.Errorf("no record of %s after the build: %v", kind, before)
		}
	}
	if limit := before.GetCaches()[0].GetLimitAge().AsDuration(); limit != keepAge {
		t.Errorf("the limit is %s", limit)
	}
	for time.Since(started) < keepAge-2*time.Second { // Runs go on; what is young stays.
		if n := m.usage(t).GetTotal().GetRecords(); n != before.GetTotal().GetRecords() {
			t.Fatalf("%s after the build began %d of %d records are left", time.Since(started), n, before.GetTotal().GetRecords())
		}
		time.Sleep(200 * time.Millisecond)
	}
	if runs := metric(t, m.Service, "kiln_cache_runs_total", `outcome="succeeded"`); len(runs) < 2 {
		t.Errorf("%s runs in %s", runs, time.Since(started))
	}
	labtest.Eventually(t, 30*time.Second, "an empty cache", func() bool { return m.usage(t).GetTotal().GetRecords() == 0 })
	if early := keepAge - time.Since(built); early > time.Second {
		t.Errorf("the cache was empty %s before its time", early)
	}
	want := fmt.Sprint(before.GetTotal().GetRecords())
	labtest.Eventually(t, 10*time.Second, "freed records in the metrics", func() bool {
		return metric(t, m.Service, "kiln_cache_freed_records_total", `daemon="a"`, `reason="age"`) == want
	})
	if size := metric(t, m.Service, "kiln_cache_freed_records_total", `reason="bytes"`); size != "0" {
		t.Errorf("%s records went by bytes", size)
	}
	if log := m.Output(); !strings.Contains(log, "exec.cachemount=1") {
		t.Errorf("the log does not say what went:\n%s", m.Tail(20))
	}
}

// A cache that is larger than keep_bytes loses what was used longest ago until it
// is not, with no build in between, and the latest stays.
func TestS4_SizeBoundKeepsTheDaemonUnderIt(t *testing.T) {
	const layer, keep = 5_000_000, 13_000_000
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	dirs := make([]string, 5)
	build := func(i int) string {
		t.Helper()
		return labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dirs[i])))(t).Stderr
	}
	for i := range dirs {
		dirs[i] = t.TempDir()
		content := make([]byte, layer)
		_, _ = rand.Read(content) // Never fails.
		labtest.Write(t, dirs[i], map[string]string{"Dockerfile": "FROM scratch\nCOPY data /data\n", "data": string(content)})
		build(i)
	}
	m := startCacheManager(t, l, &configv1.CacheManagerConfig{KeepBytes: keep, Interval: durationpb.New(300 * time.Millisecond)}, nil, daemon)
	below := func() bool { return m.usage(t).GetTotal().GetSizeBytes() <= keep }
	labtest.Eventually(t, 30*time.Second, "a cache within its bound", below)
	if left := m.usage(t).GetTotal().GetSizeBytes(); left < layer {
		t.Errorf("only %d bytes are left: more went than had to", left)
	}
	labtest.Eventually(t, 10*time.Second, "a run in the metrics that removed nothing by age", func() bool {
		return metric(t, m.Service, "kiln_cache_freed_records_total", `reason="age"`) == "0"
	})
	last := len(dirs) - 1
	if out := build(last); !strings.Contains(out, "CACHED") {
		t.Errorf("what was built last is gone:\n%s", out)
	}
	if out := build(0); strings.Contains(out, "CACHED") {
		t.Errorf("what was built first is still there:\n%s", out)
	}
	for i := range dirs { // Builds go on, and so does the bound.
		build(i)
	}
	labtest.Eventually(t, 30*time.Second, "a cache within its bound again", below)
}

// A daemon that is away does not keep the other one from being told of and kept
// to the policy; it is logged once, and kept again when it is back.
func TestS4_OneDaemonAwayTheOtherGoesOn(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 3*time.Minute)
	a := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	b := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	m := startCacheManager(t, l, &configv1.CacheManagerConfig{
		KeepAge: durationpb.New(time.Second), Interval: durationpb.New(200 * time.Millisecond),
	}, nil, a, b)
	if err := a.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	labtest.Must(lab.Exec(ctx, buildctl(t, b.Addr, dir)))(t)
	labtest.Eventually(t, 30*time.Second, "records gone from the daemon that is there", func() bool {
		n := metric(t, m.Service, "kiln_cache_freed_records_total", `daemon="b"`, `reason="age"`)
		return n != "" && n != "0"
	})

	u := m.usage(t)
	if got := codes.Code(u.GetCaches()[0].GetError().GetCode()); got != codes.Unavailable || u.GetCaches()[1].GetError() != nil { //nolint:gosec // A gRPC code.
		t.Errorf("usage with a away: %v", u)
	}
	if got := healthOf(t, m.Addr); got != serving {
		t.Errorf("with one of two daemons the health is %s", got)
	}
	if n := strings.Count(m.Output(), "cache is away"); n != 1 {
		t.Errorf("the log says %d times that a daemon is away:\n%s", n, m.Tail(20))
	}

	if err := b.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 20*time.Second, "NOT_SERVING without any daemon", func() bool { return healthOf(t, m.Addr) == notServing })
	_, err := m.api.GetUsage(ctx, &cachemanagerv1.GetUsageRequest{})
	refused(t, err, codes.Unavailable, "DAEMON_UNAVAILABLE", "")
	if err := a.Start(ctx); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 20*time.Second, "SERVING with a daemon", func() bool { return healthOf(t, m.Addr) == serving })
	labtest.Eventually(t, 20*time.Second, "a word that the daemon is back", func() bool { return strings.Contains(m.Output(), "cache is back") })
}

// What cannot be: unknown daemons, and directories that nobody configured.
func TestS4_CallsThatAreRefused(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	m := startCacheManager(t, l, &configv1.CacheManagerConfig{}, nil, labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t))
	usageOf := func(ref *cachemanagerv1.CacheRef) error {
		_, err := m.api.GetUsage(ctx, &cachemanagerv1.GetUsageRequest{Caches: []*cachemanagerv1.CacheRef{ref}})
		return err
	}
	refused(t, usageOf(&cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Daemon{Daemon: "z"}}), codes.NotFound, "NOT_FOUND", "")
	refused(t, usageOf(&cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Directory{Directory: "/x"}}), codes.NotFound, "NOT_FOUND", "")
	refused(t, usageOf(&cachemanagerv1.CacheRef{}), codes.InvalidArgument, "INVALID_FIELD", "caches[0].kind")
	_, err := m.api.AcquireLease(ctx, &cachemanagerv1.AcquireLeaseRequest{Directory: "/x", Mode: cachemanagerv1.LeaseMode_LEASE_MODE_IMPORT})
	refused(t, err, codes.NotFound, "NOT_FOUND", "")
}

// One trace holds a run, what it removed from a cache, and what the daemon did for that.
func TestS9_OneTraceOfACacheRun(t *testing.T) {
	collector := testkit.NewOTLP(t)
	addr := strings.TrimPrefix(collector.Endpoint(), "http://")
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{OTLP: addr}))(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	labtest.Must(lab.Exec(ctx, buildctl(t, daemon.Addr, dir)))(t)
	startCacheManager(t, l, &configv1.CacheManagerConfig{KeepAge: durationpb.New(time.Second), Interval: durationpb.New(time.Second)},
		lab.OTLPEnv(addr, "kiln-cachemanager"), daemon)

	labtest.Eventually(t, 20*time.Second, "a run that removes something, with the daemon's own spans below it", func() bool {
		spans := map[string]testkit.Span{}
		for _, s := range collector.Spans() {
			spans[s.SpanID] = s
		}
		for _, s := range spans {
			prune := spans[spans[s.ParentID].ParentID]
			run := spans[prune.ParentID]
			if s.Service == "buildkitd" && strings.HasSuffix(s.Name, "/Prune") && prune.Name == "cache prune" &&
				run.Name == "cache run" && run.ParentID == "" && run.TraceID == s.TraceID {
				return true
			}
		}
		return false
	})
	for _, s := range collector.Spans() {
		if strings.HasSuffix(s.Name, "/Info") {
			t.Errorf("health checks leave spans: %s of %s", s.Name, s.Service)
			break
		}
	}
}

// A daemon that hangs is not dead: the manager says so in time, and goes on when
// it does.
func TestS4_DaemonThatHangs(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	m := startCacheManager(t, l, &configv1.CacheManagerConfig{}, nil, daemon)
	if err := daemon.Pause(); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 20*time.Second, "NOT_SERVING", func() bool { return healthOf(t, m.Addr) == notServing })
	if err := daemon.Resume(); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 20*time.Second, "SERVING", func() bool { return healthOf(t, m.Addr) == serving })
	m.usage(t)
}
