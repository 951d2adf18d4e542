package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"
)

// How much of the database one transaction frees at most, so that commits need
// not wait for long.
const (
	forgetTogether = 16
	freeTogether   = 1024 // pages
)

// Forget implements build.Store.
func (s *Store) Forget(ctx context.Context, endedBefore time.Time, maxBuilds int, maxBytes int64) ([]string, error) {
	victims, err := s.victims(ctx, endedBefore, maxBuilds, maxBytes)
	if err != nil {
		return nil, explain(err)
	}
	for n := 0; n < len(victims); n += forgetTogether {
		err := s.writer.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
			for _, id := range victims[n:min(n+forgetTogether, len(victims))] {
				if _, err := tx.StmtContext(ctx, s.stmts.deleteBuild).ExecContext(ctx, id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return victims[:n], err
		}
	}
	return victims, s.shrink(ctx)
}

// victims are the ids of the builds to forget. What has ended does not change, so
// that they are still those when they go.
func (s *Store) victims(ctx context.Context, endedBefore time.Time, maxBuilds int, maxBytes int64) ([]string, error) {
	var builds int
	var bytes int64
	err := s.reads.QueryRowContext(ctx, `
		SELECT sum(n), sum(b) FROM (
			SELECT count(*) AS n, coalesce(sum(bytes), 0) AS b FROM builds WHERE ended = 0 UNION ALL
			SELECT count(*), coalesce(sum(bytes), 0) FROM builds WHERE ended = 1)`).Scan(&builds, &bytes)
	if err != nil {
		return nil, err
	}
	rows, err := s.reads.QueryContext(ctx, `SELECT id, end_time, bytes FROM builds WHERE ended = 1 ORDER BY end_time, seq`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		var end sql.NullInt64
		var size int64
		if err := rows.Scan(&id, &end, &size); err != nil {
			return nil, err
		}
		if end.Int64 >= nanoseconds(endedBefore) && builds <= maxBuilds && bytes <= maxBytes {
			break
		}
		ids = append(ids, id)
		builds, bytes = builds-1, bytes-size
	}
	return ids, rows.Err()
}

// shrink gives free pages back to the file system, some in each transaction, for
// as long as that makes them fewer. The file itself shrinks with the next
// checkpoint.
func (s *Store) shrink(ctx context.Context) error {
	for before := math.MaxInt; ; {
		var free int
		err := s.writer.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, fmt.Sprintf(`PRAGMA incremental_vacuum(%d)`, freeTogether)); err != nil {
				return err
			}
			return tx.QueryRowContext(ctx, `PRAGMA freelist_count`).Scan(&free)
		})
		if err != nil || free == 0 || free >= before {
			return err
		}
		before = free
	}
}
