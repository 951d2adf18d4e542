package builder

import (
	"archive/tar"
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/clock"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/artifacts"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
	"github.com/kilnbuild/kiln/services/builder/internal/quota"
	"github.com/kilnbuild/kiln/services/builder/internal/sqlite"
)

// While the daemon's clock contradicts the host's, builds, contexts and artifacts stay
// however old they look. They go once the clocks agree.
func TestSweep_KeepsAllWhileTheDaemonsClockDisagrees(t *testing.T) {
	s, off := &Service{log: slog.New(slog.DiscardHandler)}, atomic.Int64{}
	off.Store(int64(90 * 24 * time.Hour))
	keep := fillStores(t, s)
	var err error
	s.clock, err = clock.NewGuard(clock.Options{StateDir: t.TempDir(), Log: s.log, Meter: noop.NewMeterProvider()})
	if err != nil {
		t.Fatal(err)
	}
	s.clock.Compare(clock.NewSource("buildkitd", func(context.Context) (time.Time, error) {
		return time.Now().Add(-time.Duration(off.Load())), nil
	}))
	s.contexts.Ages(func() bool { return s.clock.Check(t.Context()) == nil })
	if err := s.sweepOnce(t.Context(), keep, 1000); err != nil {
		t.Fatal(err)
	}
	if builds, contexts, files := left(t, s); builds != 1 || contexts != 1 || files != 1 {
		t.Errorf("%d builds, %d contexts and %d artifacts are left, want all", builds, contexts, files)
	}
	off.Store(0)
	s.clock.Ask(t.Context())
	if err := s.sweepOnce(t.Context(), keep, 1000); err != nil {
		t.Fatal(err)
	}
	if builds, contexts, files := left(t, s); builds+contexts+files != 0 {
		t.Errorf("%d builds, %d contexts and %d artifacts are left once the clocks agree", builds, contexts, files)
	}
}

// fillStores opens the stores with one old build, context and artifact each, and returns a
// configuration by which these are too old.
func fillStores(t *testing.T, s *Service) *configv1.RetentionConfig {
	t.Helper()
	dir, ctx := t.TempDir(), t.Context()
	s.cfg = &configv1.BuilderConfig{StateDir: dir}
	store, err := sqlite.Open(ctx, filepath.Join(dir, "builds.db"))
	if err != nil {
		t.Fatal(err)
	}
	s.store = store
	if s.artifacts, err = artifacts.Open(filepath.Join(dir, "artifacts"), quota.Limits{}, s.log, time.Now); err != nil {
		t.Fatal(err)
	}
	limits := contextLimits(Complete(&configv1.BuilderConfig{}).GetContexts(), dir)
	limits.KeepAge = time.Millisecond
	if s.contexts, err = contextstore.Open(filepath.Join(dir, "contexts"), limits, s.log, time.Now); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = s.contexts.Close(), s.artifacts.Close(), store.Close() })
	rec := build.Record{ID: "one", Project: "web", State: build.Queued, Origin: build.OriginAPI, Created: time.Now()}
	if rec, _, err = store.Create(ctx, rec, nil); err != nil {
		t.Fatal(err)
	}
	rec.State, rec.Ended, rec.Outcome = build.Succeeded, time.Now(), &build.Outcome{State: build.Succeeded}
	if err := store.Commit(ctx, rec, nil); err != nil {
		t.Fatal(err)
	}
	w, err := s.artifacts.Create("web", "another", "image.tar")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := tar.NewWriter(&archive).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.contexts.Put(ctx, "web", &archive, ""); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	return &configv1.RetentionConfig{
		BuildAge: durationpb.New(time.Millisecond), BuildBytes: 1 << 30,
		ArtifactAge: durationpb.New(time.Millisecond), ArtifactBytes: 1 << 30,
	}
}

// left counts what the stores have.
func left(t *testing.T, s *Service) (builds, contexts, files int) {
	t.Helper()
	if _, err := s.store.Get(t.Context(), "one"); err == nil {
		builds = 1
	}
	if f, _, err := s.artifacts.Open("another", "image.tar"); err == nil {
		files = 1
		_ = f.Close()
	}
	kept, err := filepath.Glob(filepath.Join(s.cfg.GetStateDir(), "contexts", "contexts", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return builds, len(kept), files
}
