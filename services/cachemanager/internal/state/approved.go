package state

import (
	"context"
	"database/sql"
	"errors"
)

// ApprovedVersion returns the version of the policy that the schedule applies; 0: none was approved yet.
func (s *Store) ApprovedVersion(ctx context.Context) (version int64, err error) {
	err = s.db.QueryRowContext(ctx, "SELECT version FROM approved").Scan(&version)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return version, explain(err)
}

// Approve lets the schedule apply a version of the policy.
func (s *Store) Approve(ctx context.Context, version int64) error {
	_, err := s.db.ExecContext(ctx, "INSERT OR REPLACE INTO approved (one, version) VALUES (1, ?)", version)
	return explain(err)
}
