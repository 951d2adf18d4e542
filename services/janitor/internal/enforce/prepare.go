package enforce

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// prepare finds out how the registry caches, puts right what other runs left unfinished,
// and begins the journal.
func (j *job) prepare(ctx context.Context) (err error) {
	e := j.engine
	if err := e.relieve(ctx); err != nil {
		return err
	}
	if j.caches, err = e.Checker.Caches(ctx); err != nil {
		return err
	}
	if err := e.Checker.Deaf(ctx); err != nil {
		return err
	}
	if j.caches {
		j.trouble(errCaches(true))
	}
	if err := j.recoverAll(ctx); err != nil {
		return err
	}
	if j.resume {
		return j.reopen(ctx)
	}
	order, err := json.Marshal(savedOrder{
		Trigger: j.run.Trigger, PolicyVersion: j.run.PolicyVersion, PlanDigest: j.run.PlanDigest,
		Caller: j.run.Caller, Approved: j.approved,
	})
	if err != nil {
		return err
	}
	j.q, err = e.Storage.Begin(quarantine.Head{Run: j.run.ID, Started: j.run.Started, Keep: j.policy.Quarantine, MaxBuildTime: j.policy.MaxBuildTime, Order: order})
	failpoint.Hit("janitor.begun")
	return err
}

// recoverAll puts right what runs have left that did not end, but for this one.
func (j *job) recoverAll(ctx context.Context) error {
	journals, err := j.engine.Storage.Journals()
	if err != nil {
		return unreadable(err)
	}
	for _, journal := range journals {
		if journal.End || journal.Head.Run == j.run.ID {
			continue
		}
		if err := j.engine.putRight(ctx, journal); err != nil {
			return err
		}
	}
	return nil
}

// recoverRun puts right what a run has left as it was killed: blobs that it has hidden and
// not taken are shown again, manifests that it has taken by half are put back, and so is
// what is wanted again.
func recoverRun(ctx context.Context, s Storage, q Quarantine, journal quarantine.Journal) error {
	if !s.Atomic() { // these first: they cannot be pulled
		var repositories []string
		gone := map[string]bool{}
		for _, entry := range journal.Entries {
			if entry.Kind == plan.Manifest {
				repositories, gone[entry.Repository+"@"+entry.Digest] = append(repositories, entry.Repository), true
			}
		}
		slices.Sort(repositories)
		lacks, err := s.Retagged(ctx, slices.Compact(repositories), func(repository string, d content.Digest) bool { return gone[repository+"@"+string(d)] })
		if err != nil {
			return unreadable(err)
		}
		if err := mendLacks(s, lacks); err != nil {
			return err
		}
	}
	for _, entry := range journal.Entries {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		held, err := s.Holds(entry)
		switch {
		case err != nil:
			return err
		case entry.Kind == plan.Blob && !held:
			err = q.Show(content.Digest(entry.Digest), entry.Linked)
		case entry.Kind == plan.Manifest && held:
			err = q.Undo(entry)
		}
		if err != nil {
			return err
		}
	}
	failpoint.Hit("janitor.recovered")
	registry, err := s.Inventory(ctx, inventory.Look{})
	if err != nil {
		return unreadable(err)
	}
	if mended, err := mendTags(s, registry); err != nil {
		return err
	} else if mended {
		if registry, err = s.Inventory(ctx, inventory.Look{}); err != nil { // for what those lack
			return unreadable(err)
		}
	}
	lacks, err := s.Lacks(ctx, registry)
	if err != nil {
		return err
	}
	return mendLacks(s, lacks)
}

func mendLacks(s Storage, lacks []inventory.Lack) error {
	for _, l := range lacks {
		if _, err := s.Mend(l); err != nil {
			return err
		}
	}
	return nil
}

// Unfinished are the runs that a janitor has left as it was killed or stopped, here or on
// another host.
func (e *Engine) Unfinished() (all []quarantine.Journal, _ error) {
	if e.Storage == nil {
		return nil, nil
	}
	journals, err := e.Storage.Journals()
	for _, j := range journals {
		if !j.End {
			all = append(all, j)
		}
	}
	return all, err
}

// TakeUp goes on with a run that did not end: what it has left by half is put right, and
// then what of its plan the policy in force removes, too. It fails as Start does when ages cannot
// be counted.
func (e *Engine) TakeUp(ctx context.Context, journal quarantine.Journal) (*Active, error) {
	if err := e.clock(ctx); err != nil {
		return nil, err
	}
	var saved savedOrder
	if err := json.Unmarshal(journal.Head.Order, &saved); err != nil {
		return nil, fmt.Errorf("the journal of run %s is damaged: %w", journal.Head.Run, err)
	}
	j := newJob(e, Order{Trigger: saved.Trigger, Force: true, All: true})
	j.resume, j.approved, j.agree = true, saved.Approved, true
	var err error
	if j.policy, err = e.policy(ctx, nil); err != nil {
		return nil, err
	}
	j.policy.Quarantine, j.policy.MaxBuildTime = journal.Head.Keep, journal.Head.MaxBuildTime
	j.run = run.Run{
		ID: journal.Head.Run, State: run.Running, Trigger: saved.Trigger, Started: journal.Head.Started, PolicyVersion: saved.PolicyVersion,
		PlanDigest: saved.PlanDigest, Caller: saved.Caller, Reach: run.Storage, Resumed: journal.Resumed + 1,
	}
	return j.start(ctx, noSpan)
}

// Abandon ends a run that did not end, and removes nothing more: what it has left by half is put
// right, and what it took stays in quarantine. It reports whether there was such a run, and fails
// with ALREADY_EXISTS while a run is under way on the storage.
func (e *Engine) Abandon(ctx context.Context, id string) (bool, error) {
	left, err := e.Unfinished()
	if err != nil {
		return false, unreadable(err)
	}
	is := func(journal quarantine.Journal) bool { return journal.Head.Run == id }
	if !slices.ContainsFunc(left, is) {
		return false, nil
	}
	ctx, unlock, err := e.Storage.Lock(ctx, id)
	if err != nil {
		return false, err
	}
	defer unlock()
	if left, err = e.Unfinished(); err != nil { // it may have ended until the storage was this one's
		return false, unreadable(err)
	}
	if i := slices.IndexFunc(left, is); i >= 0 {
		if err := e.putRight(ctx, left[i]); err != nil {
			return false, err
		}
	}
	r, err := e.State.RunOf(ctx, id)
	if err != nil {
		return false, err
	}
	r.State, r.Err, r.Ended = run.Cancelled, nil, time.Now()
	return true, e.State.FinishRun(ctx, r)
}

// putRight ends the journal of a run that did not end.
func (e *Engine) putRight(ctx context.Context, journal quarantine.Journal) error {
	q, err := e.Storage.Resume(journal.Head.Run)
	if err != nil {
		return err
	}
	err = recoverRun(ctx, e.Storage, q, journal)
	if err == nil {
		err = q.Note(quarantine.Line{End: true})
	}
	if err := errors.Join(err, q.Close()); err != nil {
		return err
	}
	e.Log.InfoContext(ctx, "what a run left unfinished was put right", "run", journal.Head.Run)
	return nil
}

// reopen puts right what the run has left by half, now that the storage is its own, and
// goes on in its journal.
func (j *job) reopen(ctx context.Context) error {
	e := j.engine
	journals, err := e.Storage.Journals()
	if err != nil {
		return unreadable(err)
	}
	i := slices.IndexFunc(journals, func(journal quarantine.Journal) bool { return journal.Head.Run == j.run.ID })
	if i < 0 || journals[i].End {
		return fault.New(fault.Aborted, "WRONG_STATE", "the run has ended meanwhile", "GetRun shows what it did")
	}
	journal := journals[i]
	if j.q, err = e.Storage.Resume(j.run.ID); err != nil {
		return err
	}
	if err := recoverRun(ctx, e.Storage, j.q, journal); err != nil {
		return err
	}
	j.given = []plan.Verdict{} // as long as its plan was not whole, nothing was taken
	if journal.Ready {
		j.given = journal.Planned
	}
	j.planned = journal.Head.Started
	j.entries, j.noted = journal.Entries, len(journal.Entries)
	if err := j.recount(); err != nil {
		return err
	}
	return j.q.Note(quarantine.Line{Resumed: true})
}

// recount counts what is in the quarantine of a run that is taken up again.
func (j *job) recount() error {
	kept := j.entries[:0]
	for _, entry := range j.entries {
		held, err := j.engine.Storage.Holds(entry)
		if err != nil {
			return err
		}
		if held {
			kept = append(kept, entry)
			j.gone[entry.Digest] = j.gone[entry.Digest] || entry.Kind == plan.Manifest
			j.count(entry)
		}
	}
	j.entries = kept
	return nil
}
