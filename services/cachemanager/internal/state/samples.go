package state

import (
	"context"
	"errors"
	"time"

	"github.com/kilnbuild/kiln/pkg/growth"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

const (
	// sampleEvery is the time from one sample of a cache to the next.
	sampleEvery = 5 * time.Minute
	// samplesFor is how long samples are kept: a little longer than they are looked at.
	samplesFor = growth.Window + 24*time.Hour
)

// AddSample keeps what a cache held, if the last sample is old enough.
func (s *Store) AddSample(ctx context.Context, ref cache.Ref, at time.Time, bytes, records int64) error {
	_, err := s.db.ExecContext(ctx, `INSERT INTO samples (cache, time, bytes, records) SELECT ?1, ?2, ?3, ?4
		WHERE NOT EXISTS (SELECT 1 FROM samples WHERE cache = ?1 AND time > ?5)`,
		ref.String(), at.UnixNano(), bytes, records, at.Add(-sampleEvery).UnixNano())
	if err != nil {
		return explain(err)
	}
	_, err = s.db.ExecContext(ctx, "DELETE FROM samples WHERE time < ?", at.Add(-samplesFor).UnixNano())
	return explain(err)
}

// Samples returns what a cache held, in the order of time.
func (s *Store) Samples(ctx context.Context, ref cache.Ref) (all []growth.Sample, err error) {
	rows, err := s.db.QueryContext(ctx, "SELECT time, bytes FROM samples WHERE cache = ? ORDER BY time", ref.String())
	if err != nil {
		return nil, explain(err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var nano, bytes int64
		if err := rows.Scan(&nano, &bytes); err != nil {
			return nil, explain(err)
		}
		all = append(all, growth.Sample{Time: time.Unix(0, nano), Bytes: bytes})
	}
	return all, explain(rows.Err())
}
