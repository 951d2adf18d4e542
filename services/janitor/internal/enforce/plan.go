package enforce

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

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

// Plan says what a policy would remove, and keeps the plan for pages to come and for a run.
func (e *Engine) Plan(ctx context.Context, ask Ask) (_ run.Plan, err error) {
	ctx, span := e.Tracer.Start(ctx, "registry plan")
	defer func() {
		if err != nil {
			fail(span, err)
		}
		span.End()
	}()
	if err := policy.CheckRepositories("repositories", ask.Repositories); err != nil {
		return run.Plan{}, err
	}
	p, err := e.policy(ctx, ask.Policy)
	if err != nil {
		return run.Plan{}, err
	}
	made, registry, err := e.plan(ctx, p, ask, true)
	if err != nil {
		return run.Plan{}, err
	}
	span.SetAttributes(attribute.Int("kiln.registry.repositories", len(registry.Repositories)), attribute.Int64("kiln.plan.manifests", made.Removes.Manifests),
		attribute.Int64("kiln.plan.bytes", made.Removes.Bytes))
	e.plans.put(made)
	return made, nil
}

// policy is the given one, or that in force, resolved.
func (e *Engine) policy(ctx context.Context, given *policy.Policy) (policy.Policy, error) {
	if given != nil {
		return policy.Resolve(*given)
	}
	inForce, err := e.State.PolicyInForce(ctx)
	if err != nil {
		return policy.Policy{}, err
	}
	return policy.Resolve(inForce)
}

// plan plans for a run, or ahead of one.
func (e *Engine) plan(ctx context.Context, p policy.Policy, ask Ask, ahead bool) (run.Plan, inventory.Registry, error) {
	now := e.Now()
	made := run.Plan{Created: now, Expires: now.Add(planLasts), Hypothetical: !ask.At.IsZero(), Reach: e.reach(), Policy: p}
	if made.Hypothetical {
		now = ask.At
	}
	in, err := e.input(ctx, p, now, inventory.Look{Ahead: ahead}, "")
	if err != nil {
		return run.Plan{}, in.Registry, err
	}
	if globs := ask.Repositories; len(globs) > 0 {
		in.Within = func(repository string) bool {
			return slices.ContainsFunc(globs, func(g policy.Glob) bool { return g.Fits(repository) })
		}
	}
	started := time.Now()
	made.Plan = plan.Make(in)
	made.Looked, made.Took = in.Registry.Took, time.Since(started)
	if !e.Listens {
		made.Warnings = append(made.Warnings, "pulls are not known of: nobody listens to the registry's notifications, as 'run --once' does not, or they are not configured; ages count from pushes and from what builds tell")
	}
	made.Warnings = append(made.Warnings, in.Registry.Warnings...)
	made.Digest = digest(made)
	return made, in.Registry, nil
}

// reach is how far the engine reaches.
func (e *Engine) reach() run.Reach {
	if e.Storage == nil {
		return run.API
	}
	return run.Storage
}

// input is all that a plan is made from, by a look, for a run, if there is one.
func (e *Engine) input(ctx context.Context, p policy.Policy, now time.Time, look inventory.Look, runID string) (in plan.Input, err error) {
	in = plan.Input{Policy: p, Now: now}
	look.Created = policy.ReadsConfigs(p) || e.Storage == nil && policy.Orders(p) // the API tells no push times
	if look.Removed, err = e.removed(now.Add(-p.MaxBuildTime), runID); err != nil {
		return in, err
	}
	if in.Registry, err = e.look(ctx, look); err != nil {
		return in, err
	}
	// After the look, so that what was used as it went on is known of.
	uses, err := e.State.Uses(ctx)
	if err != nil {
		return in, err
	}
	if err := e.noteSeen(ctx, in.Registry, uses); err != nil {
		return in, err
	}
	if !look.Ahead {
		if err := e.noteParts(ctx, in.Registry, uses); err != nil {
			return in, err
		}
	}
	leases, err := e.State.Leases(ctx, now)
	in.Uses, in.Leases = uses, leases
	return in, err
}

// removed are the manifests that runs have removed since a time, and all of one run.
func (e *Engine) removed(since time.Time, own string) (all []inventory.Removed, _ error) {
	if e.Storage == nil {
		return nil, nil
	}
	journals, err := e.Storage.Journals()
	if err != nil {
		return nil, unreadable(err)
	}
	for _, j := range journals {
		for _, entry := range j.Entries {
			if entry.Kind == plan.Manifest && (entry.Run == own || entry.At.After(since)) {
				all = append(all, inventory.Removed{Repository: entry.Repository, Digest: content.Digest(entry.Digest), At: entry.At})
			}
		}
	}
	return all, nil
}

// look looks at the storage, one look at a time: each keeps the disk busy.
func (e *Engine) look(ctx context.Context, look inventory.Look) (inventory.Registry, error) {
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	select {
	case e.looking <- struct{}{}:
		defer func() { <-e.looking }()
	case <-ctx.Done():
		return inventory.Registry{}, context.Cause(ctx)
	}
	if e.Storage == nil {
		return e.lookByAPI(ctx, look)
	}
	var registry inventory.Registry
	both, within := errgroup.WithContext(ctx) // what the registry answers takes a part of the time of a look
	both.Go(func() error { return e.own(within) })
	both.Go(func() (err error) {
		if registry, err = e.Storage.Inventory(within, look); err != nil && within.Err() == nil {
			err = unreadable(err)
		}
		return err
	})
	if err := both.Wait(); err != nil {
		return inventory.Registry{}, cmp.Or(context.Cause(ctx), err)
	}
	if e.Looked != nil {
		e.Looked(len(registry.Bytes))
	}
	return registry, nil
}

// own is an error when the storage is not the registry's.
func (e *Engine) own(ctx context.Context) error {
	if err := e.Checker.Foreign(ctx); err != nil {
		return fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE", "the storage that the janitor was given is not the registry's",
			"set registry.storage_root to the registry's storage.filesystem.rootdirectory, or registry.storage_config to its configuration file")
	}
	return nil
}

func unreadable(err error) error {
	if fault.KindOf(err) == fault.Unavailable {
		return err
	}
	return fault.Wrap(err, fault.Unavailable, "REGISTRY_UNAVAILABLE", "the registry's storage cannot be read",
		"let the janitor's user read it, and check registry.storage_root")
}

// digest is over all that would go, in order, and when the plan was made: two plans have
// one only if they are the same.
func digest(p run.Plan) string {
	h := sha256.New()
	// A hash takes all that is written to it.
	_, _ = fmt.Fprintf(h, "%d %d\n", p.Created.UnixNano(), p.PolicyVersion)
	var line []byte
	for i := range p.Verdicts {
		v := &p.Verdicts[i]
		if !v.Remove {
			continue
		}
		line = line[:0]
		for _, part := range []string{v.Repository, string(v.Kind)} { // neither has a zero
			line = append(append(line, part...), 0)
		}
		if sum, is := content.Digest(v.Digest).Sum(); is {
			line = append(line, sum[:]...)
		} else {
			line = append(append(line, v.Digest...), 0)
		}
		_, _ = h.Write(append(strconv.AppendInt(line, v.Pushed.UnixNano(), 10), '\n'))
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// PlanOf returns a plan that is kept, or a NOT_FOUND fault.
func (e *Engine) PlanOf(digest string) (run.Plan, error) { return e.plans.get(digest) }
