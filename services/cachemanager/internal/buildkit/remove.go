package buildkit

import (
	"context"
	"fmt"
	"strings"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
)

// Remove removes records, if nothing has used them for a time and nothing is made
// upon them that is not among them too, and calls freed for each that is gone, one
// call at a time, with the bytes that this freed, or NotTold. What cannot go stays, and is no
// error. After an error some may be gone.
//
// The time is what makes it a compare-and-delete: a record that was used since it
// was listed is younger than its listing, and BuildKit compares and removes under
// one lock (cache/manager.go, pruneOnce).
func (d *Daemon) Remove(ctx context.Context, ids []string, unusedFor time.Duration, freed func(id string, bytes int64)) error {
	var filters []string
	for _, id := range ids {
		if ref, ok := strings.CutPrefix(id, historyPrefix); ok {
			if err := d.forget(ctx, ref); err != nil {
				return d.explain(ctx, err, "forget a build of its history")
			}
			freed(id, NotTold)
			continue
		}
		filters = append(filters, fmt.Sprintf("id==%q", id))
	}
	if len(filters) == 0 {
		return nil
	}
	gone := make(chan client.UsageInfo)
	done := make(chan error, 1)
	go func() {
		defer close(gone)
		done <- d.client.Prune(ctx, gone, client.PruneAll, client.WithKeepOpt(unusedFor, 0, 0, 0), client.WithFilter(filters))
	}()
	for info := range gone { // To the end, or Prune would wait for a reader.
		freed(info.ID, max(info.Size, 0))
	}
	return d.explain(ctx, <-done, "prune its cache")
}

// NotTold stands for bytes that the daemon does not tell.
const NotTold = -1

// forget removes a build from the daemon's history.
func (d *Daemon) forget(ctx context.Context, ref string) error {
	_, err := d.client.ControlClient().UpdateBuildHistory(ctx, &controlapi.UpdateBuildHistoryRequest{Ref: ref, Delete: true})
	return err
}
