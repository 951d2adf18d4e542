package buildkit

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Remove removes records, if nothing has used them for a time and nothing is made
// upon them that is not among them too, and calls freed for each that is gone, one
// call at a time, with the bytes that this freed, or NotTold. What cannot go stays, and is no
// error. After an error some may be gone.
//
// The time is what makes it a compare-and-delete: a record that was used since it
// was listed is younger than its listing, and BuildKit compares and removes under
// one lock (cache/manager.go, pruneOnce).
func (d *Daemon) Remove(ctx context.Context, targets []cache.Target, unusedFor time.Duration, freed func(id string, bytes int64)) error {
	var filters, builds []string
	for _, t := range targets {
		if strings.HasPrefix(t.ID, cache.HistoryPrefix) {
			builds = append(builds, t.ID)
		} else {
			filters = append(filters, fmt.Sprintf("id==%q", t.ID))
		}
	}
	if err := d.forgetAll(ctx, builds, freed); err != nil {
		return d.explain(ctx, err, "forget a build of its history")
	}
	if len(filters) == 0 {
		return nil
	}
	return d.prune(ctx, freed, client.WithKeepOpt(unusedFor, 0, 0, 0), client.WithFilter(filters))
}

// MakeRoom removes records, the least recently used first, until so many bytes of the
// daemon's disk are free; none of those that are excepted, nor one that was used for less than
// a time. It calls freed as Remove does.
func (d *Daemon) MakeRoom(ctx context.Context, free int64, except []string, unusedFor time.Duration, freed func(id string, bytes int64)) error {
	// With no bound of its size beside it, BuildKit removes a record also where enough is
	// free (v0.34, cache/manager.go, calculateKeepBytes and pruneOnce).
	opts := []client.PruneOption{client.WithKeepOpt(unusedFor, 0, math.MaxInt64, free)}
	var all []string // of one filter, all must hold
	for _, id := range except {
		if !strings.HasPrefix(id, cache.HistoryPrefix) {
			all = append(all, fmt.Sprintf("id!=%q", id))
		}
	}
	if len(all) > 0 {
		opts = append(opts, client.WithFilter([]string{strings.Join(all, ",")}))
	}
	return d.prune(ctx, freed, opts...)
}

// prune is one Prune of all that its options leave.
func (d *Daemon) prune(ctx context.Context, freed func(id string, bytes int64), opts ...client.PruneOption) error {
	gone := make(chan client.UsageInfo)
	done := make(chan error, 1)
	go func() {
		defer close(gone)
		done <- d.client.Prune(ctx, gone, append(opts, client.PruneAll)...)
	}()
	for info := range gone { // To the end, or Prune would wait for a reader.
		freed(info.ID, max(info.Size, 0))
	}
	return d.explain(ctx, <-done, "prune its cache")
}

// NotTold stands for bytes that the daemon does not tell.
const NotTold = -1

// forgetAtOnce is how many builds the daemon is told to forget at the same time: it
// completes the record of each first, which takes a while beside builds.
const forgetAtOnce = 8

// forgetAll removes builds from the daemon's history. An error of one does not cut the others,
// of which it would then not be known whether they are gone.
func (d *Daemon) forgetAll(ctx context.Context, ids []string, freed func(id string, bytes int64)) error {
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(forgetAtOnce)
	for _, id := range ids {
		group.Go(func() error {
			if err := d.forget(ctx, strings.TrimPrefix(id, cache.HistoryPrefix)); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			freed(id, NotTold)
			return nil
		})
	}
	return group.Wait()
}

// forget removes a build from the daemon's history.
func (d *Daemon) forget(ctx context.Context, ref string) error {
	_, err := d.client.ControlClient().UpdateBuildHistory(ctx, &controlapi.UpdateBuildHistoryRequest{Ref: ref, Delete: true})
	return err
}
