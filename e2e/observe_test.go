package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/testkit"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// observed is a whole stack in which something has happened: a build, a run of the cache
// manager and one of the janitor.
type observed struct {
	*stack
	caches, janitor *lab.Service
}

// startObserved starts it; otlp is where the spans go, if anywhere.
func startObserved(t *testing.T, otlp string) observed {
	t.Helper()
	l := labtest.New(t)
	ctx := labtest.Context(t, 3*time.Minute)
	env := func(service string) lab.ServiceOptions { return lab.ServiceOptions{Env: lab.OTLPEnv(otlp, service)} }
	secret := filepath.Join(l.Dir, "notifications.secret")
	labtest.Write(t, l.Dir, map[string]string{"notifications.secret": "0123456789abcdef"})
	http := labtest.Must(lab.FreeAddr())(t)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{YAML: "notifications:\n  endpoints:\n    - {name: j, url: \"http://" + http +
		"/registry-events\", headers: {Authorization: [\"Bearer 0123456789abcdef\"]}, timeout: 1s, threshold: 5, backoff: 1s}\n"}))(t)
	o := observed{stack: &stack{Stack: &lab.Stack{Registry: registry}, lab: l}}
	o.Buildkitd = labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{OTLP: otlp, Registries: []string{registry.Addr}}))(t)
	o.janitor = labtest.Must(l.StartJanitor(ctx, &configv1.JanitorConfig{
		Server: &configv1.ServerConfig{HttpListen: http}, Registry: &configv1.RegistryConfig{Address: registry.Addr, PlainHttp: true, StorageRoot: registry.Storage},
		Notifications: &configv1.NotificationsConfig{SecretFile: secret},
	}, env("kiln-janitor")))(t)
	o.caches = labtest.Must(l.StartCacheManager(ctx, &configv1.CacheManagerConfig{Daemons: []*configv1.DaemonConfig{{Name: "lab", Address: o.Buildkitd.Addr}}}, env("kiln-cachemanager")))(t)
	cfg := lab.BuilderConfig(nil, o.Buildkitd.Addr, registry.Addr)
	cfg.CacheManager, cfg.Janitor = &configv1.CacheManagerClient{Address: o.caches.Addr}, &configv1.JanitorClient{Address: o.janitor.Addr}
	o.Builder = labtest.Must(l.StartBuilder(ctx, cfg, env("kiln-builder")))(t)

	dir := filepath.Join(l.Dir, "app")
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /a\nCOPY Dockerfile /b\n"})
	for range 2 {
		labtest.Must(lab.Exec(ctx, lab.Command{Path: labtest.Must(lab.Bin("kiln"))(t), Env: lab.OTLPEnv(otlp, "kiln"), Args: []string{
			"build-registry", dir, dir, o.ref("observed"), "--push", "--builder", o.Builder.Addr, "--cache-repository", registry.Addr + "/cache", "--progress", "quiet",
		}}))(t)
	}
	dial := func(s *lab.Service) *grpc.ClientConn {
		conn := labtest.Must(lab.Dial(s.Addr))(t)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	prune := labtest.Must(cachemanagerv1.NewCacheManagerServiceClient(dial(o.caches)).Prune(ctx, &cachemanagerv1.PruneRequest{Force: true}))(t)
	for err := error(nil); err == nil; {
		_, err = prune.Recv()
	}
	run := labtest.Must(janitorv1.NewJanitorServiceClient(dial(o.janitor)).Run(ctx, &janitorv1.RunRequest{Force: true}))(t)
	for err := error(nil); err == nil; {
		_, err = run.Recv()
	}
	return o
}

// dashboards are the queries of the dashboards that are shipped, by dashboard and panel.
func dashboards(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, file := range labtest.Must(filepath.Glob("../deploy/observability/grafana/dashboards/*.json"))(t) {
		var board struct {
			Title  string
			Panels []struct {
				Title   string
				Targets []struct{ RefID, Expr string }
			}
		}
		if err := json.Unmarshal(labtest.Must(os.ReadFile(file))(t), &board); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, p := range board.Panels {
			for _, target := range p.Targets {
				all[board.Title+", "+p.Title+" "+target.RefID] = target.Expr
			}
		}
	}
	return all
}

// A real Prometheus scrapes a stack in which something has happened: each query of each
// dashboard gives data, each rule can be counted, and no alert burns.
func TestS9_PrometheusAndDashboards(t *testing.T) {
	o := startObserved(t, "")
	p := labtest.Must(o.lab.StartPrometheus(labtest.Context(t, time.Minute), map[string]string{
		"kiln-builder": o.Builder.HTTPAddr, "kiln-cachemanager": o.caches.HTTPAddr, "kiln-janitor": o.janitor.HTTPAddr,
	}, []string{labtest.Must(filepath.Abs("../deploy/observability/rules/kiln.recording.yml"))(t), labtest.Must(filepath.Abs("../deploy/observability/rules/kiln.alerts.yml"))(t)}))(t)
	queries := dashboards(t)
	if len(queries) < 25 {
		t.Fatalf("%d queries", len(queries))
	}
	deadline := time.Now().Add(40 * time.Second)
	for name, expr := range queries {
		for {
			n, err := p.Query(labtest.Context(t, time.Minute), expr)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				break
			}
			if n > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s gives no data: %s", name, expr)
				break
			}
			time.Sleep(500 * time.Millisecond)
		}
	}
	rules := labtest.Must(p.Rules(labtest.Context(t, time.Minute)))(t)
	if len(rules) < 20 {
		t.Errorf("%d rules", len(rules))
	}
	for _, r := range rules {
		if r.Health != "ok" || r.State == "firing" {
			t.Errorf("%s: %s %s %s", r.Name, r.Health, r.State, r.LastError)
		}
	}
}

// Each service sends its metrics by OTLP, too, where the standard variables say so.
func TestS9_MetricsByOTLP(t *testing.T) {
	collector := testkit.NewOTLP(t)
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	env := func(service string) lab.ServiceOptions {
		return lab.ServiceOptions{Unhealthy: true, Env: []string{
			"OTEL_METRICS_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.Endpoint(), "OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
			"OTEL_METRIC_EXPORT_INTERVAL=300", "OTEL_SERVICE_NAME=" + service,
		}}
	}
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{}))(t)
	labtest.Must(l.StartBuilder(ctx, lab.BuilderConfig(nil, daemon.Addr, registry.Addr), env("kiln-builder")))(t)
	labtest.Must(l.StartCacheManager(ctx, &configv1.CacheManagerConfig{Daemons: []*configv1.DaemonConfig{{Address: daemon.Addr}}}, env("kiln-cachemanager")))(t)
	labtest.Must(l.StartJanitor(ctx, &configv1.JanitorConfig{Registry: &configv1.RegistryConfig{Address: registry.Addr, PlainHttp: true}}, env("kiln-janitor")))(t)
	for service, want := range map[string]string{"kiln-builder": "kiln.dependency.up", "kiln-cachemanager": "kiln.cache.usage", "kiln-janitor": "kiln.registry.check"} {
		labtest.Eventually(t, 30*time.Second, want+" of "+service, func() bool { return slices.Contains(collector.Metrics(service), want) })
	}
}

// The alerts fire when they should and not before, and each has a runbook.
func TestS9_AlertsHaveTestsAndRunbooks(t *testing.T) {
	rules := labtest.Must(filepath.Abs("../deploy/observability/rules"))(t)
	for _, args := range [][]string{{"check", "rules", "kiln.recording.yml", "kiln.alerts.yml"}, {"test", "rules", "alerts_test.yml"}, {"check", "config", "--syntax-only", "../prometheus.yml"}} {
		labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: "/usr/bin/env", Args: append([]string{"promtool"}, args...), Dir: rules}))(t)
	}
	tests := string(labtest.Must(os.ReadFile(filepath.Join(rules, "alerts_test.yml")))(t))
	runbooks := string(labtest.Must(os.ReadFile("../docs/runbooks.md"))(t))
	n := 0
	for line := range strings.Lines(string(labtest.Must(os.ReadFile(filepath.Join(rules, "kiln.alerts.yml")))(t))) {
		name, is := strings.CutPrefix(strings.TrimSpace(line), "- alert: ")
		if !is {
			continue
		}
		if n++; !strings.Contains(tests, "alertname: "+name+"\n") || !strings.Contains(runbooks, "\n## "+name+"\n") {
			t.Errorf("%s has no test, or no runbook", name)
		}
	}
	if n < 10 {
		t.Errorf("%d alerts", n)
	}
}

// A build, a run of the cache manager and one of the janitor are one trace each, in a real
// Jaeger: from the command or the call, through the service, into buildkitd and the registry.
// KILN_PICTURES=docs/images draws them anew for the docs.
func TestS9_TracesInJaeger(t *testing.T) {
	j := labtest.Must(labtest.New(t).StartJaeger(labtest.Context(t, time.Minute)))(t)
	startObserved(t, j.OTLP)
	for name, want := range map[string]struct {
		service, span string
		services      []string
		least         int
	}{
		"build":       {"kiln", "kiln build", []string{"buildkitd", "kiln", "kiln-builder"}, 20},
		"cache-run":   {"kiln-cachemanager", "cache run", []string{"kiln-cachemanager"}, 3},
		"janitor-run": {"kiln-janitor", "registry run", []string{"kiln-janitor"}, 5},
	} {
		var spans []lab.Span
		labtest.Eventually(t, 30*time.Second, "a whole trace of "+name, func() bool {
			traces := labtest.Must(j.Traces(labtest.Context(t, time.Minute), want.service, want.span))(t)
			for _, trace := range traces {
				if len(trace) > len(spans) {
					spans = trace
				}
			}
			services := lab.Services(spans)
			for _, service := range want.services {
				if !slices.Contains(services, service) {
					return false
				}
			}
			return len(spans) >= want.least
		})
		if dir := os.Getenv("KILN_PICTURES"); dir != "" {
			labtest.Write(t, filepath.Join("..", dir), map[string]string{"trace-" + name + ".svg": lab.DrawTrace(name, spans, 40)})
		}
	}
}
