// Package enforce keeps the caches of daemons to a policy, by BuildKit's own
// prune: first what was unused for too long, then the least recently used until
// the rest is small enough.
package enforce

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/usage"
)

// Reason is why a record went.
type Reason string

// The reasons.
const (
	Age  Reason = "age"  // unused for too long
	Size Reason = "size" // too many bytes
)

// Policy says what stays.
type Policy struct {
	KeepAge   time.Duration // a record unused for longer goes
	KeepBytes int64         // more than 0: with more bytes, the least recently used go
}

// Limits are what BuildKit's prune is told. It looks at all records, of whatever
// type, that no build uses.
type Limits struct {
	// KeepDuration protects what was used within this time. 0 protects nothing.
	KeepDuration time.Duration
	// MaxUsedBytes is the bound that the cache is pruned to. 0 is no bound: then
	// everything goes that is not protected.
	MaxUsedBytes int64
}

// Pass is one prune of a run.
type Pass struct {
	Reason Reason
	Limits Limits
}

// Passes are the prunes that enforce the policy, in order. They are two, since
// KeepDuration protects also from the bound on bytes: one prune with both would
// let a cache of young records grow without end.
func (p Policy) Passes() []Pass {
	return []Pass{
		{Reason: Age, Limits: Limits{KeepDuration: p.KeepAge}},
		{Reason: Size, Limits: Limits{MaxUsedBytes: p.KeepBytes}},
	}
}

// Daemon is what is asked of a daemon here.
type Daemon interface {
	usage.Daemon
	// Prune removes records and calls freed for each that is gone, one call at a
	// time. After an error some may be gone.
	Prune(ctx context.Context, limits Limits, freed func(cache.Record)) error
}

// Freed is what a pass removed.
type Freed struct {
	Reason  Reason
	Records int64
	Bytes   int64
	Types   map[cache.Type]int64 // records by type
}

// Run is what one application of the policy did to one daemon.
type Run struct {
	Daemon         string
	Started, Ended time.Time
	Before         usage.Snapshot // unset when Err came before
	After          usage.Snapshot // unset when Err is
	Freed          []Freed        // one for each pass that was begun
	Err            error
}

// Total is what all passes removed.
func (r Run) Total() (records, bytes int64) {
	for _, f := range r.Freed {
		records += f.Records
		bytes += f.Bytes
	}
	return records, bytes
}

// How long the parts of a run may take. BuildKit's prune by size looks at all
// records again for each that goes: 2,000 take it 10 s, ten times as many a
// hundred times as long. What is left over goes in the next run.
const (
	listTimeout  = time.Minute
	pruneTimeout = time.Hour
)

// Enforcer applies a policy.
type Enforcer struct {
	policy Policy
	tracer trace.Tracer
}

// New returns an enforcer of the policy.
func New(policy Policy, tracer trace.Tracer) *Enforcer {
	return &Enforcer{policy: policy, tracer: tracer}
}

// Apply applies the policy to one daemon, once.
func (e *Enforcer) Apply(ctx context.Context, d Daemon) (run Run) {
	ctx, span := e.tracer.Start(ctx, "cache run", trace.WithAttributes(attribute.String("kiln.daemon", d.Name())))
	run = Run{Daemon: d.Name(), Started: time.Now()}
	defer func() {
		run.Ended = time.Now()
		records, bytes := run.Total()
		span.SetAttributes(attribute.Int64("kiln.freed.records", records), attribute.Int64("kiln.freed.bytes", bytes))
		end(span, run.Err)
	}()

	before, err := list(ctx, d)
	if err != nil {
		run.Err = err
		return run
	}
	run.Before = usage.Summarize(before, time.Now())
	types := make(map[string]cache.Type, len(before))
	for _, r := range before {
		types[r.ID] = r.Type
	}
	for _, pass := range e.policy.Passes() {
		freed, err := e.prune(ctx, d, pass, types)
		run.Freed = append(run.Freed, freed)
		if err != nil {
			run.Err = err
			return run
		}
	}
	after, err := list(ctx, d)
	if err != nil {
		run.Err = err
		return run
	}
	run.After = usage.Summarize(after, time.Now())
	return run
}

// prune is one pass. The daemon does not say of what type the records were that
// went, so the listing before does.
func (e *Enforcer) prune(ctx context.Context, d Daemon, pass Pass, types map[string]cache.Type) (freed Freed, err error) {
	ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
	defer cancel()
	ctx, span := e.tracer.Start(ctx, "cache prune", trace.WithAttributes(attribute.String("kiln.reason", string(pass.Reason))))
	defer func() {
		span.SetAttributes(attribute.Int64("kiln.freed.records", freed.Records), attribute.Int64("kiln.freed.bytes", freed.Bytes))
		end(span, err)
	}()

	freed = Freed{Reason: pass.Reason, Types: map[cache.Type]int64{}}
	err = d.Prune(ctx, pass.Limits, func(r cache.Record) {
		freed.Records++
		freed.Bytes += max(r.Bytes, 0)
		kind, listed := types[r.ID]
		if !listed {
			kind = cache.Unknown
		}
		freed.Types[kind]++
	})
	if err != nil {
		return freed, fmt.Errorf("pruning by %s: %w", pass.Reason, err)
	}
	return freed, nil
}

func list(ctx context.Context, d Daemon) ([]cache.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	return d.Records(ctx)
}

func end(span trace.Span, err error) {
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
