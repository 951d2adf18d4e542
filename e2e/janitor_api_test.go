package e2e_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// between is a reverse proxy in front of a registry, which fails requests for some paths.
type between struct {
	*httptest.Server
	mu     sync.Mutex
	suffix string // of paths that fail; empty: none
	status int    // with which they do; 0: the body is cut
}

func proxyOf(t *testing.T, registry *lab.Registry) *between {
	t.Helper()
	b := &between{}
	proxy := httputil.NewSingleHostReverseProxy(labtest.Must(url.Parse("http://" + registry.Addr))(t))
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		suffix, status := b.suffix, b.status
		b.mu.Unlock()
		switch {
		case suffix == "" || !strings.HasSuffix(r.URL.Path, suffix):
			proxy.ServeHTTP(w, r)
		case status > 0:
			w.WriteHeader(status)
		default:
			w.Header().Set("Content-Length", "4000")
			_, _ = w.Write([]byte(`{"schemaVersion":2`))
		}
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *between) fail(suffix string, status int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.suffix, b.status = suffix, status
}

// byAPI is a janitor that reaches a registry by its API alone, at an address.
func byAPI(t *testing.T, l *lab.Lab, registry *lab.Registry, address, state string, opts ...lab.ServiceOptions) janitor {
	t.Helper()
	return keeper(t, l, registry, time.Nanosecond, func(cfg *configv1.JanitorConfig) {
		cfg.Registry.Address, cfg.Registry.StorageRoot, cfg.StateDir = address, "", state
	}, opts...)
}

// oldGoes is a policy that removes what only tags like old have.
func oldGoes() *janitorv1.Policy {
	return noWait(&janitorv1.Policy{Rules: []*janitorv1.Rule{
		{Name: "kept", Match: &janitorv1.Match{Tags: []string{"new", "release", "list", "v*"}}, Protect: true},
		{Name: "old", Match: &janitorv1.Match{Tags: []string{"old*"}}, Keep: &janitorv1.Keep{Age: durationpb.New(0)}},
	}})
}

// By the API, a registry that answers with errors loses nothing: neither what a tag leads to, nor
// what an index lists, that could not be read just then.
func TestAPIOnly_ErrorsRemoveNothing(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	proxy := proxyOf(t, registry)
	shared := small(t)
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: shared}, mutate.IndexAddendum{Add: small(t)})
	putImage(t, registry, "app:old", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: shared}))
	putImage(t, registry, "app:new", index)
	putImage(t, registry, "app:old-too", index)
	digest := labtest.Must(index.Digest())(t).String()
	state := t.TempDir()
	start := func() janitor { return byAPI(t, l, registry, strings.TrimPrefix(proxy.URL, "http://"), state) }
	j := start()
	j.planned(t, &janitorv1.PlanRunRequest{}) // they are seen first
	for _, status := range []int{429, 500, 503, 0} {
		labtest.Must(0, j.Stop(ctx))(t)
		j = start() // with no memory of what it has read
		for _, what := range []string{"manifests/" + digest, "manifests/new"} {
			proxy.fail(what, status)
			o := j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: oldGoes()}, Force: true})
			if len(o.removed) > 0 || len(o.plan.GetWarnings()) < 2 {
				t.Errorf("%d for %s: removed %v, warnings %q", status, what, o.removed, o.plan.GetWarnings())
			}
		}
	}
	proxy.fail("", 0)
	if o := j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: oldGoes()}, Force: true}); len(o.removed) != 1 {
		t.Errorf("when all is answered: %v, %v", o.removed, o.finished)
	}
	for _, ref := range []string{"app:new", "app:old-too"} {
		labtest.Must(0, pullWhole(ctx, registry.Addr, ref))(t)
	}
}

// By the API, a tag that is pushed onto what a plan removes keeps it, and so does an index that comes
// to list it.
func TestAPIOnly_WhatIsPushedAfterThePlanStays(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	tagged, listed, gone := small(t), small(t), small(t)
	putImage(t, registry, "app:old", tagged)
	putImage(t, registry, "app:old-listed", listed)
	putImage(t, registry, "app:old-gone", gone)
	putImage(t, registry, "app:v1", small(t))
	j := byAPI(t, l, registry, registry.Addr, t.TempDir())
	j.planned(t, &janitorv1.PlanRunRequest{}) // they are seen first
	plan, _ := j.planned(t, &janitorv1.PlanRunRequest{Policy: oldGoes()})
	putImage(t, registry, "app:release", tagged)
	putImage(t, registry, "app:list", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: listed}))
	o := j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_PlanDigest{PlanDigest: plan.GetDigest()}, Force: true})
	if plan.GetRemove().GetManifests() != 3 || len(o.removed) != 1 || o.removed[0].GetItem().GetDigest() != labtest.Must(gone.Digest())(t).String() {
		t.Errorf("the plan removes %v, the run %v", plan.GetRemove(), o.removed)
	}
	for _, ref := range []string{"app:release", "app:list", "app:old", "app:old-listed"} {
		labtest.Must(0, pullWhole(ctx, registry.Addr, ref))(t)
	}
}

// A janitor that is killed as it deletes by the API has stored all that it deleted.
func TestAPIOnly_CrashLosesNoRecord(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	const all = 5
	digests := map[string]string{}
	for i := range all {
		img := small(t)
		tag := fmt.Sprint("old-", i)
		putImage(t, registry, "app:"+tag, img)
		digests[tag] = labtest.Must(img.Digest())(t).String()
	}
	putImage(t, registry, "app:v1", small(t))
	state := t.TempDir()
	j := byAPI(t, l, registry, registry.Addr, state, lab.ServiceOptions{Env: []string{"KILN_FAILPOINT=janitor.manifest:3"}})
	j.planned(t, &janitorv1.PlanRunRequest{}) // they are seen first
	if o, err := j.tryRun(ctx, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: oldGoes()}, Force: true}); err == nil {
		t.Fatalf("it was not killed: %v", o.finished)
	}
	j = byAPI(t, l, registry, registry.Addr, state)
	runs := labtest.Must(j.api.ListRuns(ctx, &janitorv1.ListRunsRequest{}))(t).GetRuns()
	if len(runs) != 1 || runs[0].GetState() != janitorv1.RunState_RUN_STATE_INTERRUPTED || runs[0].GetRemoved().GetManifests() == 0 {
		t.Fatalf("%v", runs)
	}
	told := map[string]bool{}
	for _, v := range labtest.Must(j.api.GetRun(ctx, &janitorv1.GetRunRequest{RunId: runs[0].GetId()}))(t).GetVerdicts() {
		told[v.GetItem().GetDigest()] = goesAway(v)
	}
	deleted := 0
	for tag, digest := range digests {
		ref := labtest.Must(name.ParseReference(registry.Addr+"/app:"+tag, name.Insecure))(t)
		if _, err := remote.Head(ref, remote.WithContext(ctx)); err == nil {
			continue
		}
		if deleted++; !told[digest] {
			t.Errorf("%s was deleted, and the run does not say so", tag)
		}
	}
	if deleted != 3 {
		t.Errorf("%d were deleted, want 3", deleted)
	}
}

// Where notifications of pulls do not arrive, nothing is removed, also by the API alone; the check
// says so.
func TestRun_NeedsNotificationsOfPulls(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute)
	listens, secret := labtest.Must(lab.FreeAddr())(t), strings.Repeat("s", 32)
	file := filepath.Join(t.TempDir(), "secret")
	labtest.Must(0, os.WriteFile(file, []byte(secret), 0o600))(t)
	endpoint := func(ignored string) string {
		return fmt.Sprintf(`notifications:
  endpoints:
    - {name: kiln, url: "http://%s/registry-events", headers: {Authorization: ["Bearer %s"]}, timeout: 1s, threshold: 3, backoff: 100ms%s}
`, listens, secret, ignored)
	}
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{YAML: endpoint(", ignore: {actions: [pull]}")}))(t)
	putImage(t, registry, "cache/a:main", small(t))
	putImage(t, registry, "app:v1", small(t))
	start := func(root string) janitor {
		return keeper(t, l, registry, time.Nanosecond, func(cfg *configv1.JanitorConfig) {
			cfg.Server = &configv1.ServerConfig{HttpListen: listens}
			cfg.Notifications = &configv1.NotificationsConfig{SecretFile: file}
			cfg.Registry.StorageRoot = root
		})
	}
	run := func(j janitor) *janitorv1.Run {
		t.Helper()
		return j.run(t, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: weekly()}, Force: true}).finished
	}
	for what, root := range map[string]string{"the storage": registry.Storage, "the API alone": ""} {
		j := start(root)
		if r := run(j); r.GetState() != janitorv1.RunState_RUN_STATE_FAILED || !strings.Contains(r.GetError().GetMessage(), "of pulls") {
			t.Errorf("by %s: %v", what, r)
		}
		if c, _ := j.check(t); c["notifications"].GetState() != janitorv1.CheckState_CHECK_STATE_FAIL || !strings.Contains(c["notifications"].GetMessage(), "pulls") {
			t.Errorf("by %s: %v", what, c["notifications"])
		}
		labtest.Must(0, j.Stop(ctx))(t)
	}
	labtest.Must(0, registry.Stop(ctx))(t)
	registry = labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{Addr: registry.Addr, Storage: registry.Storage, YAML: endpoint("")}))(t)
	for what, root := range map[string]string{"the storage": registry.Storage, "the API alone": ""} {
		j := start(root)
		if r := run(j); r.GetState() != janitorv1.RunState_RUN_STATE_SUCCEEDED || r.GetBrokenManifests() > 0 {
			t.Errorf("by %s, when they arrive: %v", what, r)
		}
		labtest.Must(0, j.Stop(ctx))(t)
	}
}
