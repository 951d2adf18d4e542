package enforce

import (
	"context"
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
)

// Quarantine is what is in quarantine, the newest first.
func (e *Engine) Quarantine(ctx context.Context) (all []quarantine.Entry, _ error) {
	if e.Storage == nil {
		return nil, fault.New(fault.FailedPrecondition, "WRONG_STATE", "there is no quarantine without the registry's storage",
			"run the janitor where the storage can be reached, and set registry.storage_root or registry.storage_config")
	}
	journals, err := e.Storage.Journals()
	if err != nil {
		return nil, unreadable(err)
	}
	for _, j := range journals {
		for _, entry := range j.Entries {
			if err := ctx.Err(); err != nil {
				return nil, context.Cause(ctx)
			}
			held, err := e.Storage.Holds(entry)
			if err != nil {
				return nil, unreadable(err)
			}
			if held {
				all = append(all, entry)
			}
		}
	}
	slices.SortFunc(all, quarantine.Entry.Compare)
	return all, nil
}

// QuarantineOf are the entries of these ids; one that is not there is a NOT_FOUND fault.
func (e *Engine) QuarantineOf(ctx context.Context, ids []string) (some []quarantine.Entry, _ error) {
	all, err := e.Quarantine(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		i := slices.IndexFunc(all, func(entry quarantine.Entry) bool { return entry.ID == id })
		if i < 0 {
			return nil, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no entry %q in quarantine", id), "ListQuarantine shows what there is: it was restored or purged")
		}
		some = append(some, all[i])
	}
	return some, nil
}

// QuarantineOfRun are the entries of a run; one without any is a NOT_FOUND fault.
func (e *Engine) QuarantineOfRun(ctx context.Context, id string) ([]quarantine.Entry, error) {
	all, err := e.Quarantine(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(entry quarantine.Entry) bool { return entry.Run != id })
	if len(all) == 0 {
		return nil, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("nothing of run %q is in quarantine", id), "ListQuarantine shows what there is: it was restored or purged")
	}
	return all, nil
}

// Restore brings entries back, with all that they need: blobs first, so that no manifest is
// seen without them. What the registry has meanwhile stays as it is. A run waits so long,
// and what was restored counts as pushed now.
func (e *Engine) Restore(ctx context.Context, entries []quarantine.Entry, dry bool) (out quarantine.Result, err error) {
	if dry {
		out.Restored = entries
		return out, nil
	}
	ctx, unlock, err := e.Storage.Lock(ctx, "restore")
	if err != nil {
		return out, err
	}
	defer unlock()
	ordered := slices.SortedStableFunc(slices.Values(entries), func(a, b quarantine.Entry) int { return rank(a) - rank(b) })
	for _, entry := range ordered {
		if ctx.Err() != nil {
			return out, context.Cause(ctx)
		}
		present, missing, err := e.Storage.Restore(entry, e.Now())
		switch {
		case err != nil:
			return out, unreadable(err)
		case missing:
			return out, fault.New(fault.FailedPrecondition, "WRONG_STATE", fmt.Sprintf("a part of %s was purged before", entry.Digest), "push it again")
		case present:
			out.Present = append(out.Present, entry)
		default:
			out.Restored = append(out.Restored, entry)
		}
	}
	return out, nil
}

// rank is the order of restoring: blobs, then manifests that others may list, then those
// that list.
func rank(e quarantine.Entry) int {
	switch {
	case e.Kind == "blob":
		return 0
	case e.Kind != "manifest":
		return 1
	case e.Of != "index":
		return 2
	}
	return 3
}

// Purge removes entries for good.
func (e *Engine) Purge(ctx context.Context, entries []quarantine.Entry) error {
	_, unlock, err := e.Storage.Lock(ctx, "purge")
	if err != nil {
		return err
	}
	defer unlock()
	if err := e.Storage.Purge(entries); err != nil {
		return unreadable(err)
	}
	return nil
}
