package sqlite

import (
	"context"
	"database/sql"
	"slices"
)

// AddRemoval remembers that a daemon must drop its record of a solve.
func (s *Store) AddRemoval(ctx context.Context, daemon, ref string) error {
	return s.writer.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO removals (daemon, ref) VALUES (?, ?) ON CONFLICT DO NOTHING`, daemon, ref)
		return err
	})
}

// DropRemoval forgets a removal, because the daemon has made it.
func (s *Store) DropRemoval(ctx context.Context, daemon, ref string) error {
	return s.writer.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM removals WHERE daemon = ? AND ref = ?`, daemon, ref)
		return err
	})
}

// Removals returns the solves whose records a daemon must still drop.
func (s *Store) Removals(ctx context.Context, daemon string) ([]string, error) {
	rows, err := s.reads.QueryContext(ctx, `SELECT ref FROM removals WHERE daemon = ? ORDER BY ref`, daemon)
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	var refs []string
	for rows.Next() {
		var ref string
		if err := rows.Scan(&ref); err != nil {
			return nil, explain(err)
		}
		refs = append(refs, ref)
	}
	return refs, explain(rows.Err())
}

// MoveRemovals gives a daemon the removals of all daemons that are not among the
// configured ones, and returns how many these were, by the daemons' names.
func (s *Store) MoveRemovals(ctx context.Context, configured []string, to string) (map[string]int, error) {
	moved := make(map[string]int)
	err := s.writer.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		clear(moved)
		rows, err := tx.QueryContext(ctx, `SELECT daemon, count(*) FROM removals GROUP BY daemon`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var daemon string
			var n int
			if err := rows.Scan(&daemon, &n); err != nil {
				return err
			}
			if !slices.Contains(configured, daemon) {
				moved[daemon] = n
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		for daemon := range moved {
			for _, change := range []string{
				`INSERT INTO removals (daemon, ref) SELECT ?1, ref FROM removals WHERE daemon = ?2 ON CONFLICT DO NOTHING`,
				`DELETE FROM removals WHERE daemon = ?2 AND ?1 <> ?2`,
			} {
				if _, err := tx.ExecContext(ctx, change, to, daemon); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return moved, err
}
