package buildkit

import (
	"archive/tar"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/outcome"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
)

// fetching is a run whose daemon fetches from loopback, and what it tells.
func fetching(t *testing.T) (*run, *[]build.StepEvent) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	contexts, err := contextstore.Open(t.TempDir(), contextstore.Limits{
		KeepAge: time.Hour, KeepBytes: 1 << 30, MaxBytes: 1 << 20, MaxEntries: 100, MaxRatio: 200, MaxDepth: 10, MaxPathBytes: 100, FetchTimeout: time.Minute,
	}, log, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := contexts.Close(); err != nil {
			t.Error(err)
		}
	})
	events := new([]build.StepEvent)
	return &run{
		daemon: &Daemon{opts: Options{Contexts: contexts, Guard: guard.New(guard.Policy{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, log)}},
		hide:   hiderOf(build.Spec{}, nil), progress: outcome.NewProgress(),
		sink: func(kind any) {
			if step, ok := kind.(build.StepEvent); ok {
				*events = append(*events, step)
			}
		},
	}, events
}

// serveTar serves an archive of one file whose content is the path of the URL.
func serveTar(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/missing" {
			http.NotFound(w, r)
			return
		}
		archive := tar.NewWriter(w)
		_ = archive.WriteHeader(&tar.Header{Name: "f", Mode: 0o644, Size: int64(len(r.URL.Path))})
		_, _ = archive.Write([]byte(r.URL.Path))
		_ = archive.Close()
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// Fetched archives stand in the spec by the digests of what they hold; the spec that
// was given, which may be tried again, stays as it is.
func TestFetch(t *testing.T) {
	r, events := fetching(t)
	url := serveTar(t)
	at := func(path string) build.Context {
		return build.Context{HTTP: &build.HTTPContext{URL: url + path + "?token=hidden"}}
	}
	given := build.Spec{Context: at("/main"), NamedContexts: map[string]build.Context{"a": at("/a"), "b": {Directory: &build.DirectoryContext{Path: "/b"}}}}
	got, err := r.fetch(t.Context(), given)
	if err != nil {
		t.Fatal(err)
	}
	if given.Context.HTTP == nil || given.NamedContexts["a"].HTTP == nil {
		t.Error("the given spec was changed")
	}
	if got.Context.Uploaded == nil || got.NamedContexts["a"].Uploaded == nil || got.NamedContexts["b"].Directory == nil ||
		got.Context.Uploaded.Digest == got.NamedContexts["a"].Uploaded.Digest {
		t.Errorf("%+v", got)
	}
	var seen []string
	for _, e := range *events {
		seen = append(seen, strings.TrimPrefix(e.Name, outcome.FetchStep+strings.TrimPrefix(url, "http://")))
		if strings.Contains(e.Name+e.Error, "hidden") {
			t.Errorf("an event shows the query: %+v", e)
		}
	}
	if strings.Join(seen, " ") != "/main /main /a /a" {
		t.Errorf("steps: %q", seen)
	}
	if counts := r.progress.Counts(); counts != (build.StepCounts{}) {
		t.Errorf("fetching counts among the user's steps: %+v", counts)
	}
}

func TestFetchFails(t *testing.T) {
	r, events := fetching(t)
	_, err := r.fetch(t.Context(), build.Spec{Context: build.Context{HTTP: &build.HTTPContext{URL: serveTar(t) + "/missing?token=hidden"}}})
	f := outcome.FailureOf(t.Context(), err, r.progress)
	if f.Reason != "SOURCE_NOT_FOUND" || f.Class != build.User || !strings.HasPrefix(f.Step, outcome.FetchStep) {
		t.Errorf("%+v", f)
	}
	if last := (*events)[len(*events)-1]; last.State != build.StepFailed || strings.Contains(last.Error+f.Message, "hidden") {
		t.Errorf("%+v, %+v", last, f)
	}
}
