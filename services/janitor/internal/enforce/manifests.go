package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

var noSpan trace.SpanContext

// plan plans, or looks again at each item of the plan that was given.
func (j *job) plan(ctx context.Context) error {
	e := j.engine
	ask := Ask{Repositories: j.order.Repositories}
	made, registry, err := e.plan(ctx, j.policy, ask, false)
	if err != nil {
		return err
	}
	if !j.run.Dry && j.q != nil { // a tag of what comes back leads somewhere
		mended, err := mendTags(e.Storage, registry)
		if err == nil && mended {
			made, registry, err = e.plan(ctx, j.policy, ask, false)
		}
		if err != nil {
			return err
		}
	}
	j.in.Registry = registry
	if j.given == nil {
		j.planned = made.Created
	} else {
		made, err = j.recheck(ctx, made)
		if err != nil {
			return err
		}
	}
	j.run.PlanDigest = made.Digest
	j.run.Predicted = made.Removes
	for _, r := range made.Rules {
		j.run.Rules = append(j.run.Rules, plan.RuleAmount{Rule: r.Rule})
	}
	if !j.run.Dry {
		e.Metrics.Doubted(ctx, made.Doubts)
	}
	j.emit(Event{Planned: &made})
	for _, v := range made.Verdicts {
		j.spent = j.spent || v.Reason == plan.OverBudget
	}
	removals := made.Removals()
	if j.run.Dry {
		j.tell(ctx, removals)
		return nil
	}
	if made.RemovesAll && !j.order.All {
		return removesAll("everything would be removed")
	}
	if err := j.brake(made); err != nil {
		if j.given == nil {
			e.plans.put(made)
		}
		return err
	}
	j.given = removals
	if j.resume || j.q == nil {
		return nil // it is in the journal, or there is none
	}
	lines := make([]quarantine.Line, 0, len(removals)+1)
	for i := range removals {
		lines = append(lines, quarantine.Line{Planned: &removals[i]})
	}
	err = j.q.Note(append(lines, quarantine.Line{Ready: true})...)
	failpoint.Hit("janitor.planned")
	return err
}

// batch is how much is journalled at a time.
const batch = 200

// manifests removes the manifests of the plan, and what leads nowhere.
func (j *job) manifests(ctx context.Context) (err error) {
	find := indexOf(j.in.Registry)
	var todo []plan.Verdict
	for _, v := range j.given {
		if v.Remove && v.Kind != plan.Blob {
			todo = append(todo, v)
		} else if v.Remove {
			j.allowed[v.Digest] = true
		}
	}
	j.at(run.Manifests, int64(len(todo)))
	bounded, cancel := j.halfBounded(ctx)
	defer cancel()
	told := time.Now()
	w, p := j.watch(), newPushes(j.engine.Storage, j.in.Registry)
	// However it ends: what a push wants of what went until then is not left away.
	defer func() { err = errors.Join(err, w.end(context.WithoutCancel(ctx)), p.look(todo)) }()
	size := batch
	if j.q == nil { // what became of each is stored at once: there is no journal
		size = 1
	}
	for part := range inFamilies(todo, size) {
		if over, err := j.ended(bounded); err != nil || over {
			return err
		}
		gone, err := j.removeAll(ctx, find, part, w, p)
		j.tell(ctx, gone)
		j.done(len(part), &told)
		if err != nil {
			return err
		}
	}
	return nil
}

// bounded is a context that ends when the time of the budget is spent.
func (j *job) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if j.policy.Budget.Time <= 0 {
		return ctx, func() {}
	}
	return context.WithDeadlineCause(ctx, j.run.Started.Add(j.policy.Budget.Time), errSpent)
}

// halfBounded is a context that ends when half of the time that the budget leaves is spent: the sweep
// gets the other half. Else a backlog of manifests would free no byte until it is done.
func (j *job) halfBounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if j.policy.Budget.Time <= 0 || j.q == nil || j.caches {
		return j.bounded(ctx)
	}
	now := time.Now()
	left := j.run.Started.Add(j.policy.Budget.Time).Sub(now)
	return context.WithDeadlineCause(ctx, now.Add(left/2), errHalf)
}

// ended is why the run has to end, and whether its time, or that of its phase, is spent.
func (j *job) ended(ctx context.Context) (over bool, _ error) {
	err := context.Cause(ctx)
	if errors.Is(err, errSpent) || errors.Is(err, errHalf) {
		j.spent = true
		return true, nil
	}
	return false, err
}

// removeAll removes one batch, and returns what became of it.
func (j *job) removeAll(ctx context.Context, find index, part []plan.Verdict, w *watch, p *pushes) (all []plan.Verdict, err error) {
	now, err := j.holders(ctx, find, w.kept)
	if err != nil {
		return nil, err
	}
	if err := p.look(part); err != nil {
		return nil, err
	}
	entries, err := j.note(part)
	if err != nil {
		return nil, err
	}
	keptBy := now.holdFamilies(part, p)
	for i, v := range part {
		taken, reason, by := false, plan.UsedSince, ""
		if kept := keptBy[i]; kept.reason != "" {
			reason, by = kept.reason, kept.by
		} else if held, why, holder := now.hold(v); held { // for what stayed of this batch
			reason, by = why, holder
		} else if taken, err = j.remove(ctx, find, v); err != nil {
			return all, err
		}
		if j.left[v.Repository] {
			reason = plan.Doubt
		}
		if taken {
			j.took(entries[i], v)
			j.allow(find, v)
			p.went(v)
			if err := w.manifestWent(ctx, v); err != nil {
				return all, err
			}
		} else {
			w.kept[v.Repository+"@"+v.Digest] = true
			v.Remove, v.Frees, v.Reason, v.KeptBy = false, 0, reason, by
			v.Explain = "it stays: " + strings.ReplaceAll(string(reason), "_", " ")
		}
		all = append(all, v)
		failpoint.Hit("janitor.manifest")
	}
	return all, nil
}

// note writes to the journal what is about to be taken.
func (j *job) note(part []plan.Verdict) (entries []quarantine.Entry, err error) {
	var lines []quarantine.Line
	for _, v := range part {
		j.noted++
		e := quarantine.Entry{
			ID: fmt.Sprintf("%s-%d", j.run.ID, j.noted), Run: j.run.ID, Kind: v.Kind, Repository: v.Repository, Digest: v.Digest, Tags: v.Tags, Of: v.Of, Bytes: v.Bytes,
			Reason: v.Reason, Rule: v.Rule, Pushed: v.Pushed, At: j.engine.Now(),
		}
		entries, lines = append(entries, e), append(lines, quarantine.Line{Entry: &e})
	}
	if j.q != nil {
		err = j.q.Note(lines...)
	}
	failpoint.Hit("janitor.manifests.noted")
	return entries, err
}

// took counts what was taken.
func (j *job) took(e quarantine.Entry, v plan.Verdict) {
	j.entries = append(j.entries, e)
	j.gone[v.Digest] = j.gone[v.Digest] || v.Kind == plan.Manifest
	if j.q == nil {
		j.run.Removed = j.run.Removed.Plus(v.Amount()) // what it lets the registry free
	} else {
		j.count(e)
	}
	j.addRule(v)
}

// remove takes one thing that is not a blob.
func (j *job) remove(ctx context.Context, find index, v plan.Verdict) (bool, error) {
	if j.q == nil {
		return j.removeByAPI(ctx, v)
	}
	key, digest := v.Repository+"@"+v.Digest, content.Digest(v.Digest)
	switch v.Kind {
	case plan.Upload:
		u, there := find.uploads[key]
		if !there {
			return false, nil
		}
		return j.q.Upload(v.Repository, u)
	case plan.Link:
		if len(v.Tags) > 0 {
			return j.q.Tag(v.Repository, find.tags[key])
		}
		return j.q.Link(v.Repository, digest, find.links[key].Linked)
	case plan.Blob:
		return false, nil
	case plan.Manifest:
	}
	linked := find.doubts[key].Linked
	if m := find.manifests[key]; m != nil {
		linked = m.Linked
	}
	var tags []inventory.Tag
	for _, name := range v.Tags {
		tags = append(tags, find.tags[v.Repository+"@"+name])
	}
	if j.caches { // what it remembers of the manifest has to go too
		same, err := j.q.Same(v.Repository, digest, linked)
		if err != nil || !same {
			return false, err
		}
		return true, j.deleteManifest(ctx, v)
	}
	return j.q.Manifest(v.Repository, digest, linked, tags)
}

// deleteManifest has the registry delete a manifest, which it caches. Its links are in quarantine
// before, as are those of what is moved there.
func (j *job) deleteManifest(ctx context.Context, v plan.Verdict) error {
	digest := content.Digest(v.Digest)
	if err := j.q.Copy(v.Repository, digest, v.Tags); err != nil {
		return err
	}
	if err := j.engine.Registry.DeleteManifest(ctx, v.Repository, digest); err != nil {
		return errors.Join(err, j.q.Drop(v.Repository, digest, v.Tags))
	}
	return nil
}

// allow lets blobs go that a removed manifest named.
func (j *job) allow(find index, v plan.Verdict) {
	if v.Kind != plan.Manifest {
		return
	}
	j.allowed[v.Digest] = true
	if m := find.manifests[v.Repository+"@"+v.Digest]; m != nil {
		for _, b := range m.Blobs {
			j.allowed[string(b.Digest())] = true
		}
		for _, d := range slices.Concat(m.Children, m.Foreign) {
			j.allowed[string(d)] = true
		}
	}
}

// count counts what was taken.
func (j *job) count(e quarantine.Entry) {
	a := plan.Amount{}
	switch e.Kind {
	case plan.Manifest:
		a.Manifests = 1
	case plan.Upload:
		a.Uploads, a.Bytes = 1, e.Bytes
	case plan.Blob:
		a.Bytes = e.Bytes
		if !j.gone[e.Digest] {
			a.Blobs = 1
		}
	case plan.Link:
	}
	j.run.Removed = j.run.Removed.Plus(a)
}

// addRule adds what went to its rule and its repository.
func (j *job) addRule(v plan.Verdict) {
	for i := range j.run.Rules {
		if j.run.Rules[i].Rule == v.Rule {
			j.run.Rules[i].Amount = j.run.Rules[i].Plus(v.Amount())
		}
	}
	i := slices.IndexFunc(j.run.Repositories, func(of run.RepositoryAmount) bool { return of.Repository == v.Repository })
	if i < 0 {
		j.run.Repositories = append(j.run.Repositories, run.RepositoryAmount{Repository: v.Repository})
		i = len(j.run.Repositories) - 1
	}
	j.run.Repositories[i].Amount = j.run.Repositories[i].Plus(v.Amount())
}
