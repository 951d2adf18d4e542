package state

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/kilnbuild/kiln/pkg/growth"
)

// samplesFor is how long samples are kept: a little longer than they are looked at.
const samplesFor = growth.Window + 24*time.Hour

// AddSample keeps how many bytes the registry held.
func (s *Store) AddSample(ctx context.Context, sample growth.Sample) error {
	return s.runs.Change(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO samples (time, bytes) VALUES (?, ?)", sample.Time.UnixNano(), sample.Bytes)
		if err == nil {
			_, err = tx.ExecContext(ctx, "DELETE FROM samples WHERE time < ?", sample.Time.Add(-samplesFor).UnixNano())
		}
		return err
	})
}

// Samples returns what the registry held, in the order of time.
func (s *Store) Samples(ctx context.Context) (all []growth.Sample, err error) {
	rows, err := s.db.QueryContext(ctx, "SELECT time, bytes FROM samples ORDER BY time")
	if err != nil {
		return nil, explain(err)
	}
	defer func() { err = explain(errors.Join(err, rows.Close())) }()
	for rows.Next() {
		var nano, bytes int64
		if err := rows.Scan(&nano, &bytes); err != nil {
			return nil, err
		}
		all = append(all, growth.Sample{Time: time.Unix(0, nano), Bytes: bytes})
	}
	return all, rows.Err()
}
