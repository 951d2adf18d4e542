// Package enforce keeps a registry to a policy: it looks at what is stored and plans. It
// does not remove anything yet.
package enforce

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// Storage is what is asked of the registry's storage here.
type Storage interface {
	// Inventory is what is stored now.
	Inventory(ctx context.Context, look inventory.Look) (inventory.Registry, error)
}

// Checker knows whether the storage is the registry's.
type Checker interface {
	// Foreign is an error when it is not, as far as the registry answers.
	Foreign(ctx context.Context) error
}

// Options is what an engine is made of.
type Options struct {
	Storage Storage // nil: out of reach
	Checker Checker
	Policy  policy.Policy
	Tracer  trace.Tracer
	Now     func() time.Time // that ages are counted to
}

// Engine plans.
type Engine struct {
	Options

	plans   plans
	looking chan struct{} // has room for one look at the storage
}

// New returns an engine. Its policy is a resolved one.
func New(opts Options) *Engine { return &Engine{Options: opts, looking: make(chan struct{}, 1)} }

// Ask says what to plan.
type Ask struct {
	Policy       *policy.Policy // nil: the one in force
	Repositories []policy.Glob  // none: all
	At           time.Time      // that ages are counted to; zero: now
}

const (
	// planLasts is how long a plan can be carried out.
	planLasts = 15 * time.Minute
	// planTimeout bounds the look at the storage.
	planTimeout = 30 * time.Minute
)

// Plan says what a policy would remove, and keeps the plan for pages to come.
func (e *Engine) Plan(ctx context.Context, ask Ask) (_ run.Plan, err error) {
	ctx, span := e.Tracer.Start(ctx, "registry plan")
	defer func() {
		if err != nil {
			span.RecordError(err)
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}()
	p := e.Policy
	if ask.Policy != nil {
		if p, err = policy.Resolve(*ask.Policy); err != nil {
			return run.Plan{}, err
		}
	}
	if e.Storage == nil {
		return run.Plan{}, fault.New(fault.Unimplemented, "UNIMPLEMENTED", "this version plans with the registry's storage only",
			"run the janitor where the storage is, and set registry.storage_root")
	}
	registry, err := e.look(ctx)
	if err != nil {
		return run.Plan{}, err
	}
	now := e.Now()
	made := run.Plan{Created: now, Expires: now.Add(planLasts), Hypothetical: !ask.At.IsZero()}
	if made.Hypothetical {
		now = ask.At
	}
	in := plan.Input{Registry: registry, Policy: p, Now: now}
	if globs := ask.Repositories; len(globs) > 0 {
		in.Within = func(repository string) bool {
			return slices.ContainsFunc(globs, func(g policy.Glob) bool { return g.Fits(repository) })
		}
	}
	made.Plan = plan.Make(in)
	made.Digest = digest(made)
	span.SetAttributes(attribute.Int("kiln.registry.repositories", len(registry.Repositories)), attribute.Int64("kiln.plan.manifests", made.Removes.Manifests),
		attribute.Int64("kiln.plan.bytes", made.Removes.Bytes))
	e.plans.put(made)
	return made, nil
}

// look looks at the storage, one look at a time: each keeps the disk busy.
func (e *Engine) look(ctx context.Context) (inventory.Registry, error) {
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	select {
	case e.looking <- struct{}{}:
		defer func() { <-e.looking }()
	case <-ctx.Done():
		return inventory.Registry{}, context.Cause(ctx)
	}
	if err := e.Checker.Foreign(ctx); err != nil {
		return inventory.Registry{}, fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE", "registry.storage_root is not the registry's storage",
			"set it to the registry's storage.filesystem.rootdirectory")
	}
	registry, err := e.Storage.Inventory(ctx, inventory.Look{})
	switch {
	case err == nil:
		return registry, nil
	case ctx.Err() != nil:
		return registry, context.Cause(ctx)
	default:
		return registry, fault.Wrap(err, fault.Unavailable, "REGISTRY_UNAVAILABLE", "the registry's storage cannot be read",
			"let the janitor's user read it, and check registry.storage_root")
	}
}

// digest is over all that would go, in order, and when the plan was made: two plans have
// one only if they are the same.
func digest(p run.Plan) string {
	h := sha256.New()
	// A hash takes all that is written to it.
	_, _ = fmt.Fprintf(h, "%d %d\n", p.Created.UnixNano(), p.PolicyVersion)
	for _, v := range p.Verdicts {
		if v.Remove {
			_, _ = fmt.Fprintf(h, "%q %q %q %d\n", v.Repository, v.Kind, v.Digest, v.Pushed.UnixNano())
		}
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// PlanOf returns a plan that is kept, or a NOT_FOUND fault.
func (e *Engine) PlanOf(digest string) (run.Plan, error) { return e.plans.get(digest) }
