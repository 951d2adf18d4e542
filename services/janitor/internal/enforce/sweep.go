package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// sweep takes the blobs that nothing reaches any more, while pushes go on. A push that is
// accepted has links to all blobs of its manifest, made before it was checked that they
// are there. So a blob whose links are hidden has a new one when an accepted push names
// it, and what has one when its bytes were taken comes back.
func (j *job) sweep(ctx context.Context) error {
	if j.caches {
		return nil
	}
	bounded, cancel := j.bounded(ctx)
	defer cancel()
	if over, err := j.ended(bounded); err != nil || over {
		return err
	}
	victims, err := j.mark(ctx)
	if err != nil || len(victims) == 0 {
		return err
	}
	// The registry may have been started anew with another configuration since.
	if caches, err := j.engine.Checker.Caches(ctx); err != nil || caches {
		return errors.Join(err, errCaches(caches))
	}
	if victims, err = j.hide(ctx, victims); err != nil {
		return err
	}
	if victims, err = j.settle(ctx, victims); err != nil {
		return err
	}
	taken, err := j.takeAll(ctx, bounded, victims)
	if err == nil {
		_, err = j.ended(ctx)
	}
	if err == nil {
		j.at(run.Recheck, int64(len(taken)))
		if err = sleep(ctx, j.engine.Settle); err == nil {
			_, err = j.recall(ctx, taken)
		}
	}
	if err != nil {
		return err
	}
	failpoint.Hit("janitor.rechecked")
	return nil
}

// errCaches is that the registry remembers blobs that are gone.
func errCaches(caches bool) error {
	if !caches {
		return nil
	}
	return fault.New(fault.FailedPrecondition, "WRONG_STATE",
		"the registry remembers blobs in a cache (storage.cache.blobdescriptor), and would take pushes that name what is gone: manifests are removed, and no blob is",
		"leave storage.cache out of the registry's configuration and start it again; deploy/registry/config.yml is one that is safe")
}

// mark lists the blobs and then marks what manifests reach; it returns what nothing does,
// and may go.
func (j *job) mark(ctx context.Context) (victims []inventory.Orphan, err error) {
	j.at(run.Mark, 0)
	in, err := j.engine.input(ctx, j.policy, j.engine.Now(), inventory.Look{}, j.run.ID)
	if err != nil {
		return nil, err
	}
	j.in = in
	byDigest := map[string]inventory.Orphan{}
	for _, o := range in.Registry.Orphans {
		byDigest[string(o.Digest)] = o
	}
	for _, v := range plan.Orphans(in) {
		switch {
		case !j.allowed[v.Digest] && (!j.resume || byDigest[v.Digest].Removed.IsZero()):
		case v.Remove:
			victims = append(victims, byDigest[v.Digest])
		case v.Reason == plan.Grace:
			j.run.Waiting.Bytes += v.Bytes
			if !j.gone[v.Digest] {
				j.run.Waiting.Blobs++
			}
		}
	}
	failpoint.Hit("janitor.marked")
	// What was pushed as manifests went may be or name one of them.
	if _, err = mendTags(j.engine.Storage, in.Registry); err == nil {
		_, err = j.mendAll(ctx, in.Registry)
	}
	return victims, err
}

// hide takes the links to blobs, so that pushes from now on upload them again.
func (j *job) hide(ctx context.Context, victims []inventory.Orphan) (hidden []inventory.Orphan, err error) {
	j.at(run.Hide, int64(len(victims)))
	told, w := time.Now(), j.watch()
	for part := range slices.Chunk(victims, 10*batch) {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		var lines []quarantine.Line
		for _, o := range part {
			j.entries = append(j.entries, quarantine.Entry{
				ID: fmt.Sprintf("%s-%d", j.run.ID, j.noted+1), Run: j.run.ID, Kind: plan.Blob, Digest: string(o.Digest), Bytes: o.Bytes, Reason: plan.Unreached, Linked: o.Links(),
				Pushed: o.Changed, At: j.engine.Now(),
			})
			j.noted++
			entry := j.entries[len(j.entries)-1]
			lines = append(lines, quarantine.Line{Entry: &entry})
		}
		if err := j.q.Note(lines...); err != nil {
			return nil, err
		}
		is := make([]bool, len(part))
		err := j.inSteps(ctx, w, part, func(i int) (err error) {
			o := part[i]
			if is[i], err = j.q.Hide(o); err == nil && !is[i] {
				err = j.q.Show(o.Digest, o.Links()) // a push has it
			}
			failpoint.Hit("janitor.hidden")
			return err
		})
		if err != nil {
			return nil, err
		}
		hidden = append(hidden, pick(part, is)...)
		j.done(len(part), &told)
	}
	return hidden, nil
}

// settle waits for requests that were under way as links were hidden, and lets those blobs
// be that are linked again, or that a manifest names which came since.
func (j *job) settle(ctx context.Context, victims []inventory.Orphan) (still []inventory.Orphan, err error) {
	j.at(run.Settle, int64(len(victims)))
	if err := sleep(ctx, j.engine.Settle); err != nil {
		return nil, err
	}
	revived, err := j.recall(ctx, victims)
	if err == nil {
		err = j.showAsked(ctx, victims, revived)
	}
	failpoint.Hit("janitor.settled")
	return slices.DeleteFunc(victims, func(o inventory.Orphan) bool { return revived[o.Digest] }), err
}

// showAsked shows blobs again that clients have asked for, pulled or mounted since they were marked: a
// push that was told that one is there does not upload it.
func (j *job) showAsked(ctx context.Context, victims []inventory.Orphan, revived map[content.Digest]bool) error {
	asked, err := j.engine.State.UsesSince(ctx, j.in.Now)
	if err != nil {
		return err
	}
	aliases := j.in.Registry.Aliases()
	for _, o := range victims {
		for _, name := range o.Names(aliases) {
			if _, pulled := asked.Last(name, o.Digest, nil); pulled.IsZero() || revived[o.Digest] {
				continue
			}
			if err := j.q.Show(o.Digest, o.Links()); err != nil {
				return err
			}
			revived[o.Digest] = true
		}
	}
	return nil
}

// chunk is how many blobs are moved between two looks at what is wanted again: for so
// long can a blob be away that a push has just found.
const chunk = 2000

// takeAll moves blobs to the quarantine, until bounded ends.
func (j *job) takeAll(ctx, bounded context.Context, victims []inventory.Orphan) (taken []inventory.Orphan, err error) {
	j.at(run.Quarantine, int64(len(victims)))
	told, w := time.Now(), j.watch()
	for part := range slices.Chunk(victims, chunk) {
		over, err := j.ended(bounded)
		if err != nil {
			return taken, err
		}
		if over && len(taken) > 0 { // so that each run takes some
			break
		}
		is := make([]bool, len(part))
		failed := j.inSteps(ctx, w, part, func(i int) (err error) {
			o := part[i]
			if is[i], err = j.q.Blob(o); err == nil && !is[i] {
				err = j.q.Show(o.Digest, o.Links())
			}
			failpoint.Hit("janitor.taken")
			return err
		})
		gone := pick(part, is)
		// Also when the run is to end: what is wanted again is not left away.
		revived, err := j.recall(context.WithoutCancel(ctx), gone)
		if err != nil {
			return taken, err
		}
		gone = slices.DeleteFunc(gone, func(o inventory.Orphan) bool { return revived[o.Digest] })
		taken = append(taken, gone...)
		j.tookBlobs(ctx, gone)
		j.done(len(part), &told)
		if failed != nil {
			return taken, failed
		}
	}
	return taken, nil
}

// step is how many blobs go before the watch may look. No more are worked on meanwhile.
const step = 50

// inSteps does something for each of some blobs, some at once, under a watch.
func (j *job) inSteps(ctx context.Context, w *watch, blobs []inventory.Orphan, do func(i int) error) error {
	if w.needless() {
		return each(len(blobs), do)
	}
	for from := 0; from < len(blobs); from += step {
		to := min(from+step, len(blobs))
		if err := each(to-from, func(i int) error { return do(from + i) }); err != nil {
			return err
		}
		if err := w.blobsWent(ctx, blobs[from:to]); err != nil {
			return err
		}
	}
	return nil
}

// atOnce is how many blobs are worked on at the same time: the work is the file system's.
const atOnce = 4

// each does something for each of n, some at once. After an error it begins no more.
func each(n int, do func(i int) error) error {
	group, ctx := errgroup.WithContext(context.Background())
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() error {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the first error is told
			}
			return do(i)
		})
	}
	return group.Wait()
}

// pick are those for which is holds.
func pick(all []inventory.Orphan, is []bool) (some []inventory.Orphan) {
	for i, o := range all {
		if is[i] {
			some = append(some, o)
		}
	}
	return some
}

// tookBlobs counts and tells blobs that were taken.
func (j *job) tookBlobs(ctx context.Context, gone []inventory.Orphan) {
	var verdicts []plan.Verdict
	for _, o := range gone {
		j.count(quarantine.Entry{Kind: plan.Blob, Digest: string(o.Digest), Bytes: o.Bytes})
		verdicts = append(verdicts, plan.Verdict{
			Kind: plan.Blob, Digest: string(o.Digest), Bytes: o.Bytes, Pushed: o.Changed, Remove: true, Reason: plan.Unreached, Frees: o.Bytes,
			Explain: "no manifest names it", Age: j.in.Now.Sub(o.Changed),
		})
	}
	j.tell(ctx, verdicts)
}

// recallRounds bounds how often what came back is looked through for what it needs.
const recallRounds = 10

// recall brings back what of these blobs is wanted again, and of what the run took before.
func (j *job) recall(ctx context.Context, blobs []inventory.Orphan) (revived map[content.Digest]bool, err error) {
	revived = map[content.Digest]bool{}
	byDigest := map[content.Digest]inventory.Orphan{}
	for _, o := range blobs {
		byDigest[o.Digest] = o
	}
	taken := func(d content.Digest) bool {
		_, is := byDigest[d]
		return (is || j.gone[string(d)]) && !revived[d]
	}
	for range recallRounds {
		lacks, err := j.engine.Storage.Wanted(ctx, j.in.Registry, taken)
		if err != nil {
			return revived, j.doubt(err, byDigest)
		}
		if len(lacks) == 0 {
			return revived, nil
		}
		for _, l := range lacks {
			if _, err := j.engine.Storage.Mend(l); err != nil {
				return revived, err
			}
			if o, is := byDigest[l.Digest]; is {
				if err := j.q.Show(l.Digest, o.Links()); err != nil {
					return revived, err
				}
			}
			revived[l.Digest] = true
		}
	}
	return revived, nil
}

// doubt brings all back: something came that cannot be read, and may name any of it.
func (j *job) doubt(why error, blobs map[content.Digest]inventory.Orphan) error {
	for d, o := range blobs {
		if _, err := j.q.Return(d); err != nil {
			return err
		}
		if err := j.q.Show(d, o.Links()); err != nil {
			return err
		}
	}
	return unreadable(why)
}

// showAll shows what was hidden and not taken.
func (j *job) showAll() error {
	for _, e := range j.entries {
		if e.Kind != plan.Blob {
			continue
		}
		held, err := j.engine.Storage.Holds(quarantine.Entry{Run: j.run.ID, Kind: plan.Blob, Digest: e.Digest})
		if err != nil {
			return err
		}
		if !held {
			if err := j.q.Show(content.Digest(e.Digest), e.Linked); err != nil {
				return err
			}
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
