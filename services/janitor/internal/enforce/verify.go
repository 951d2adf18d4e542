package enforce

import (
	"context"
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// verify resolves every manifest that is left, and brings back what one lacks that is in
// quarantine.
func (j *job) verify(ctx context.Context) error {
	if err := j.dropEmpty(); err != nil {
		return err
	}
	registry, err := j.engine.look(ctx, inventory.Look{})
	if err != nil {
		return err
	}
	if mended, err := mendTags(j.engine.Storage, registry); err != nil {
		return err
	} else if mended {
		if registry, err = j.engine.look(ctx, inventory.Look{}); err != nil { // for what those lack
			return err
		}
	}
	lacks, err := j.mendAll(ctx, registry)
	if err != nil {
		return err
	}
	j.run.Verified, j.run.Broken = 0, 0
	for _, r := range registry.Repositories {
		j.run.Verified += int64(len(r.Manifests))
	}
	for _, d := range Defects(registry, lacks) {
		if d.Kind == run.MissingBlob {
			j.run.Broken++
		}
		j.emit(Event{Defect: &d})
	}
	failpoint.Hit("janitor.verified")
	return nil
}

// mendTags brings back the manifests that tags lead to and that are in quarantine: a push that
// wrote one as it was taken. It reports whether there were any.
func mendTags(s Storage, registry inventory.Registry) (some bool, _ error) {
	for _, r := range registry.Repositories {
		for _, tag := range r.Tags {
			if tag.Lost == "" {
				continue
			}
			mended, err := s.Mend(inventory.Lack{Repository: r.Name, Manifest: tag.Lost, Digest: tag.Lost, Child: true})
			if err != nil {
				return some, err
			}
			some = some || mended
		}
	}
	return some, nil
}

// mendAll brings back what manifests lack, and returns what they lack still.
func (j *job) mendAll(ctx context.Context, registry inventory.Registry) (left []inventory.Lack, _ error) {
	lacks, err := j.engine.Storage.Lacks(ctx, registry)
	if err != nil {
		return nil, unreadable(err)
	}
	for _, l := range lacks {
		mended, err := j.engine.Storage.Mend(l)
		if err != nil {
			return nil, err
		}
		if !mended {
			left = append(left, l)
			continue
		}
		j.engine.Log.InfoContext(ctx, "what a manifest names came back from quarantine", "run", j.run.ID, "repository", l.Repository, "manifest", string(l.Manifest), "digest", string(l.Digest))
	}
	return left, nil
}

// dropEmpty removes the repositories in which nothing is left, where a rule says so, once
// builds do not want anything of them any more.
func (j *job) dropEmpty() error {
	now := j.engine.Now()
	busy := map[string]bool{}
	journals, err := j.engine.Storage.Journals()
	if err != nil {
		return unreadable(err)
	}
	for _, journal := range journals {
		for _, e := range journal.Entries {
			busy[e.Repository] = busy[e.Repository] || e.At.Add(j.policy.MaxBuildTime).After(now)
		}
	}
	for _, r := range j.in.Registry.Repositories {
		if len(r.Manifests)+len(r.Tags)+len(r.Doubts)+len(r.Uploads) > 0 || busy[r.Name] || j.exported(r.Names()) {
			continue
		}
		i := slices.IndexFunc(j.policy.Rules, func(rule policy.Rule) bool { return rule.Covers(r.Name) })
		if i >= 0 && j.policy.Rules[i].Keep != nil && j.policy.Rules[i].Keep.DropEmpty {
			if err := j.q.DropEmpty(r.Name, now.Add(-j.policy.BlobGrace)); err != nil {
				return err
			}
		}
	}
	return nil
}

// exported reports whether a build writes to a repository, by one of its names.
func (j *job) exported(names []string) bool {
	return j.in.Leases != nil && slices.ContainsFunc(names, func(name string) bool { return j.in.Leases.Export(name) != "" })
}

// Defects are what is wrong in a registry: one for each manifest that is not whole, and for
// each thing that leads nowhere.
func Defects(r inventory.Registry, lacks []inventory.Lack) (all []run.Defect) {
	type manifest struct {
		repository string
		digest     content.Digest
	}
	byManifest := map[manifest][]inventory.Lack{}
	var order []manifest
	for _, l := range lacks {
		key := manifest{l.Repository, l.Manifest}
		if byManifest[key] == nil {
			order = append(order, key)
		}
		byManifest[key] = append(byManifest[key], l)
	}
	tags := map[manifest][]string{}
	for _, of := range r.Repositories {
		for _, t := range of.Tags {
			key := manifest{of.Name, t.Digest}
			tags[key] = append(tags[key], of.Name+":"+t.Name)
		}
	}
	for _, key := range order {
		of := byManifest[key]
		all = append(all, run.Defect{
			Repository: key.repository, Kind: run.MissingBlob, Digest: string(of[0].Digest), References: append(tags[key], key.repository+"@"+string(key.digest)),
			Message: fmt.Sprintf("manifest %s names %s, which is not there, and %d more", key.digest, of[0].Digest, len(of)-1),
			Remedy:  "push it again, or delete it",
		})
	}
	for _, of := range r.Repositories {
		for _, d := range of.Doubts {
			kind, remedy, mended := run.BadManifest, "push it again, or delete it: until then nothing of this repository that no other manifest names goes", false
			if d.Bytes == 0 {
				kind, remedy, mended = run.EmptyManifest, "push it again", true
			}
			all = append(all, run.Defect{Repository: of.Name, Kind: kind, Digest: string(d.Digest), References: tags[manifest{of.Name, d.Digest}], Message: d.Message, Remedy: remedy, Mended: mended})
		}
		for _, t := range of.Tags {
			if t.Lost != "" {
				all = append(all, run.Defect{Repository: of.Name, Kind: run.DanglingTag, Digest: string(t.Lost), References: []string{of.Name + ":" + t.Name}, Message: "the tag leads to a manifest that is not there", Remedy: "push it again", Mended: true})
			}
		}
		for _, l := range of.Dangling {
			all = append(all, run.Defect{Repository: of.Name, Kind: run.DanglingLink, Digest: string(l.Digest), Message: "a link leads to a blob that is not there", Remedy: "none is needed", Mended: true})
		}
	}
	return all
}

// purge removes for good what was in quarantine for long enough.
func (j *job) purge(ctx context.Context) error {
	journals, err := j.engine.Storage.Journals()
	if err != nil {
		return unreadable(err)
	}
	var over []string
	var blobs, bytes int64
	now := j.engine.Now()
	for _, journal := range journals {
		own := journal.Head.Run == j.run.ID
		if own && journal.Head.Keep > 0 {
			b, n := amountOf(journal)
			blobs, bytes = blobs+b, bytes+n
			continue
		}
		if (journal.End || own) && journal.Over(now) {
			over = append(over, journal.Head.Run)
			continue
		}
		b, n := amountOf(journal)
		blobs, bytes = blobs+b, bytes+n
	}
	j.run.Progress.Total = int64(len(over))
	failpoint.Hit("janitor.purging")
	if err := j.engine.purgeRuns(ctx, over); err != nil {
		return err
	}
	j.engine.Metrics.Quarantined(ctx, blobs, bytes)
	if err := j.engine.Storage.Reserve(); err != nil {
		j.engine.Log.WarnContext(ctx, "cannot reserve disk space for runs on a full disk", "error", err)
	}
	return nil
}

func (e *Engine) purgeRuns(ctx context.Context, over []string) error {
	if err := e.Storage.PurgeRuns(ctx, over); err != nil {
		return fault.Wrap(err, fault.Unavailable, "REGISTRY_UNAVAILABLE", "the quarantine could not be emptied", "look at the disk of the registry's storage; the next run tries again")
	}
	return nil
}

// relieve makes room where the disk is nearly full, before a run writes anything: what was in
// quarantine for long enough goes first, and then what is kept for a full disk.
func (e *Engine) relieve(ctx context.Context) error {
	low, err := e.Storage.Low()
	if err != nil || !low {
		return err
	}
	journals, err := e.Storage.Journals()
	if err != nil {
		return unreadable(err)
	}
	var over []string
	for _, journal := range journals {
		if journal.End && journal.Over(e.Now()) {
			over = append(over, journal.Head.Run)
		}
	}
	if err := e.purgeRuns(ctx, over); err != nil {
		return err
	}
	if low, err = e.Storage.Low(); low {
		e.Storage.SpendReserve()
	}
	return err
}

func amountOf(journal quarantine.Journal) (blobs, bytes int64) {
	for _, e := range journal.Entries {
		if e.Kind == "blob" {
			blobs, bytes = blobs+1, bytes+e.Bytes
		}
	}
	return blobs, bytes
}
