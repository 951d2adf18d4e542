package enforce

import (
	"context"
	"errors"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
)

// lookByAPI looks at a registry whose storage is out of reach.
func (e *Engine) lookByAPI(ctx context.Context, look inventory.Look) (inventory.Registry, error) {
	registry, warnings, err := e.Remote.Inventory(ctx, look.Created)
	registry.Warnings = append(warnings, "the registry's storage is out of reach: manifests are deleted through its API, those without a tag are not seen, and the space is the registry's own to free")
	return registry, err
}

// noteSeen has manifests count as pushed when they are seen first, of which neither the storage nor
// a notification tells when that was: the API does not, nor does a backup that was restored without
// its times. All of one look count as pushed at the same moment.
func (e *Engine) noteSeen(ctx context.Context, r inventory.Registry, book *lastuse.Book) error {
	var seen []lastuse.Use
	now := e.Now()
	for _, of := range r.Repositories {
		for _, m := range of.Manifests {
			if plan.Timed(m.Pushed) {
				continue
			}
			if pushed, _ := book.Last(of.Name, m.Digest, nil); pushed.IsZero() {
				seen = append(seen, lastuse.Use{Repository: of.Name, Name: lastuse.ByDigest(m.Digest), Push: true, At: now})
			}
		}
	}
	for _, u := range seen {
		book.Add(u.Repository, u.Name, lastuse.Last{Pushed: u.At})
	}
	if len(seen) == 0 {
		return nil
	}
	_, err := e.State.RecordUses(ctx, seen)
	return err
}

// lockByAPI makes the run the only one of this janitor that removes: there is no storage
// whose lock would.
func (j *job) lockByAPI() error {
	e := j.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.remover != "" {
		err := fault.New(fault.AlreadyExists, "ALREADY_EXISTS", "a run on the registry is under way", "wait for its end, watch it with GetRun, or end it with CancelRun")
		err.Metadata = map[string]string{"run_id": e.remover}
		return err
	}
	e.remover = j.run.ID
	j.unlock = func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.remover = ""
	}
	return nil
}

// prepareByAPI makes sure that it is known what is used.
func (j *job) prepareByAPI(ctx context.Context) error { return j.engine.Checker.Deaf(ctx) }

// removeByAPI deletes a manifest through the API. When the repository cannot be read as a whole, it
// is left alone for the rest of the run.
func (j *job) removeByAPI(ctx context.Context, v plan.Verdict) (bool, error) {
	if v.Kind != plan.Manifest || j.left[v.Repository] {
		return false, nil
	}
	if err := j.intend(ctx, v); err != nil {
		return false, err
	}
	deleted, err := j.engine.Remote.Delete(ctx, v.Repository, content.Digest(v.Digest), v.Tags)
	if errors.Is(err, content.ErrBroken) && ctx.Err() == nil {
		j.left[v.Repository] = true
		j.trouble(err)
		return false, nil
	}
	return deleted, err
}

// intend stores that a manifest is about to be deleted, so that no crash loses what a run deleted: the
// API has no journal. When it stays after all, a later verdict says so.
func (j *job) intend(ctx context.Context, v plan.Verdict) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := j.engine.State.AddVerdicts(ctx, j.run.ID, []plan.Verdict{v}); err != nil {
		return fault.Wrap(err, fault.Unavailable, "STORAGE_FAILED",
			"what the run is about to delete cannot be stored, and so is not deleted", "look at the disk of state_dir")
	}
	return nil
}

// keepSoFar stores what a run by the API has deleted until now.
func (j *job) keepSoFar(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if err := j.engine.State.UpdateRun(ctx, j.run); err != nil {
		j.engine.Log.ErrorContext(ctx, "how far a run has come cannot be stored", "run", j.run.ID, "error", err)
	}
}

// verifyByAPI resolves what tags reach.
func (j *job) verifyByAPI(ctx context.Context) error {
	registry, warnings, err := j.engine.Remote.Inventory(ctx, false)
	if err != nil {
		return err
	}
	j.run.Verified, j.run.Broken = 0, int64(len(warnings))
	for _, r := range registry.Repositories {
		j.run.Verified += int64(len(r.Manifests))
	}
	return nil
}
