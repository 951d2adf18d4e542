package enforce_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
	"github.com/kilnbuild/kiln/services/janitor/internal/state"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// memory is a storage, and what knows whose it is.
type memory struct {
	enforce.Storage
	registry inventory.Registry
	err      error
	foreign  error
	block    chan struct{} // nil: it answers at once
	looks    int
}

func (m *memory) Inventory(ctx context.Context, _ inventory.Look) (inventory.Registry, error) {
	if m.looks++; m.block != nil {
		select {
		case <-m.block:
		case <-ctx.Done():
			return inventory.Registry{}, ctx.Err()
		}
	}
	return m.registry, m.err
}

func (m *memory) Foreign(context.Context) error           { return m.foreign }
func (m *memory) Journals() ([]quarantine.Journal, error) { return nil, nil }
func (m *memory) Caches(context.Context) (bool, error)    { return false, nil }
func (m *memory) Deaf(context.Context) error              { return nil }

func manifest(digest string) inventory.Manifest {
	m := inventory.Manifest{Manifest: &content.Manifest{}, Pushed: now.Add(-9 * 24 * time.Hour)}
	m.Digest, m.Of, m.Bytes = content.Digest(digest), content.Image, 1
	return m
}

func engine(t *testing.T, m *memory) *enforce.Engine {
	t.Helper()
	store, err := state.Open(context.Background(), filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := store.Configure(context.Background(), policy.Default(7*24*time.Hour), now); err != nil {
		t.Fatal(err)
	}
	at := now
	opts := enforce.Options{State: store, Checker: &memory{}, Tracer: noop.NewTracerProvider().Tracer(""), Now: func() time.Time {
		at = at.Add(time.Second)
		return at
	}}
	if m != nil {
		opts.Storage, opts.Checker = m, m
	}
	return enforce.New(opts)
}

func kind(t *testing.T, err error, want fault.Kind) {
	t.Helper()
	if e, ok := errors.AsType[*fault.Error](err); !ok || e.Kind != want || e.Remedy == "" {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestPlan(t *testing.T) {
	m := &memory{registry: inventory.Registry{Repositories: []inventory.Repository{
		{Name: "cache/a", Manifests: []inventory.Manifest{manifest("x"), manifest("y")}}, {Name: "cache/b", Manifests: []inventory.Manifest{manifest("x")}},
	}}}
	e := engine(t, m)
	p, err := e.Plan(t.Context(), enforce.Ask{})
	if err != nil || p.Removes.Manifests != 3 || p.Hypothetical || !p.Expires.After(p.Created) {
		t.Fatalf("%+v, %v", p, err)
	}
	if kept, err := e.PlanOf(p.Digest); err != nil || kept.Digest != p.Digest || len(kept.Verdicts) != 3 {
		t.Errorf("%+v, %v", kept, err)
	}
	some, err := e.Plan(t.Context(), enforce.Ask{Repositories: policy.Globs("cache/a")})
	if err != nil || some.Removes.Manifests != 2 || some.Removes.Bytes != 1 || some.Digest == p.Digest {
		t.Errorf("%+v, %v: x is held by cache/b", some, err)
	}
	earlier, err := e.Plan(t.Context(), enforce.Ask{At: now.Add(-5 * 24 * time.Hour)})
	if err != nil || earlier.Removes.Manifests != 0 || !earlier.Hypothetical {
		t.Errorf("%+v, %v", earlier, err)
	}
	for range 8 {
		if _, err := e.Plan(t.Context(), enforce.Ask{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = e.PlanOf(p.Digest)
	kind(t, err, fault.NotFound)
}

func TestPlanIsRefused(t *testing.T) {
	ctx := t.Context()
	// A look at another's storage does not go on, and nothing is planned by it.
	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	m := &memory{foreign: errors.New("it has another's"), block: make(chan struct{})}
	p, err := engine(t, m).Plan(bounded, enforce.Ask{})
	if kind(t, err, fault.FailedPrecondition); p.Plan != nil {
		t.Errorf("it was planned: %+v", p)
	}
	m.block = nil
	if p, err = engine(t, m).Plan(ctx, enforce.Ask{}); p.Plan != nil {
		t.Errorf("it was planned after the look: %+v", p)
	}
	kind(t, err, fault.FailedPrecondition)
	_, err = engine(t, &memory{err: errors.New("no such disk")}).Plan(ctx, enforce.Ask{})
	kind(t, err, fault.Unavailable)
	_, err = engine(t, &memory{}).Plan(ctx, enforce.Ask{Policy: &policy.Policy{Rules: []policy.Rule{{}}}})
	kind(t, err, fault.InvalidArgument)
}

// Looks at the storage wait for one another, as long as their callers do.
func TestOneLookAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{block: make(chan struct{})}
		e := engine(t, m)
		first := make(chan error, 1)
		go func() {
			_, err := e.Plan(t.Context(), enforce.Ask{})
			first <- err
		}()
		synctest.Wait() // it is under way
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := e.Plan(ctx, enforce.Ask{}); !errors.Is(err, context.DeadlineExceeded) || m.looks != 1 {
			t.Errorf("%v, %d looks", err, m.looks)
		}
		close(m.block)
		if err := <-first; err != nil {
			t.Error(err)
		}
		if _, err := e.Plan(t.Context(), enforce.Ask{}); err != nil || m.looks != 2 {
			t.Errorf("%v, %d looks", err, m.looks)
		}
	})
}

// silent is metrics that nobody reads.
type silent struct{}

func (silent) RunEnded(context.Context, run.Run)         {}
func (silent) Braked(context.Context, bool)              {}
func (silent) Doubted(context.Context, int64)            {}
func (silent) Quarantined(context.Context, int64, int64) {}

// view is a registry by its API.
type view struct{ block chan struct{} }

func (v view) Inventory(ctx context.Context, _ bool) (inventory.Registry, []string, error) {
	select {
	case <-v.block:
	case <-ctx.Done():
	}
	return inventory.Registry{}, nil, ctx.Err()
}

func (view) Delete(context.Context, string, content.Digest, []string) (bool, error) { return true, nil }

// Of runs that are asked for at the same moment one begins, also where no storage has a lock;
// when it has ended the next one may.
func TestOneRunRemovesByTheAPI(t *testing.T) {
	e := engine(t, nil)
	v := view{make(chan struct{})}
	var id atomic.Int64
	e.Remote, e.Metrics, e.Log = v, silent{}, slog.New(slog.DiscardHandler)
	e.Now, e.NewID = time.Now, func() string { return fmt.Sprint("run", id.Add(1)) }
	order := enforce.Order{Trigger: run.Demand, Force: true}
	var began atomic.Int64
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			_, err := e.Start(t.Context(), order, trace.SpanContext{})
			if err == nil {
				began.Add(1)
			} else if fault.KindOf(err) != fault.AlreadyExists {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if began.Load() != 1 {
		t.Errorf("%d runs began", began.Load())
	}
	close(v.block)
	e.Wait()
	if r, err := e.RunOnce(t.Context(), order, nil); err != nil || r.State != run.Succeeded {
		t.Errorf("afterwards: %+v, %v", r, err)
	}
}
