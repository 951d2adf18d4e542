package enforce

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
)

// makeRooms has a daemon see to its disk, whose figures only it knows.
func (r *removal) makeRooms(ctx context.Context, c Cache) error {
	roomy, ok := c.(Roomy)
	if !ok {
		return nil
	}
	for _, room := range r.rooms {
		removed, err := r.makeRoom(ctx, roomy, room, room.LowBytes)
		if err == nil && removed {
			_, err = r.makeRoom(ctx, roomy, room, room.HighBytes)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// makeRoom reports whether anything went.
func (r *removal) makeRoom(ctx context.Context, c Roomy, room plan.Room, free int64) (removed bool, err error) {
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	known := make(map[string]cache.Record, len(r.listing.Records))
	for _, record := range r.listing.Records {
		known[record.ID] = record
	}
	var done []plan.Verdict
	// What was used since the listing stays, and so does what the listing does not have.
	err = c.MakeRoom(ctx, free, room.Except, time.Since(r.listing.Time), func(id string, bytes int64) {
		record, there := known[id]
		if !there {
			record = cache.Record{ID: id, Type: cache.Unknown, Bytes: bytes}
		}
		v := plan.Verdict{
			Cache: room.Cache, Record: record, Remove: true, Rule: room.Rule, Reason: plan.FreeDisk, Frees: max(bytes, 0), Age: r.listing.Time.Sub(record.LastActive()),
			Explain: fmt.Sprintf("the daemon made room on its disk until %s were free", human.Size(free)),
		}
		r.report.After -= v.Frees
		done = append(done, v)
		r.took(v)
	})
	r.job.keep(ctx, done)
	return len(done) > 0, err
}
