package sqlite

import (
	"context"
	"database/sql"
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
