package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// migrations are the steps of the schema in the order of their names. A step
// that was released is never changed: the next one changes what it made.
//
//go:embed migrations/*.sql
var migrations embed.FS

// migrate brings the database to the schema of this version, one step in one
// transaction. SQLite's user_version counts the steps that were taken.
func migrate(ctx context.Context, db *sql.DB) error {
	steps, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return err
	}
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version > len(steps) {
		return fault.New(fault.FailedPrecondition, "WRONG_STATE",
			fmt.Sprintf("the store was written by a later version of Kiln: its schema is %d, this version knows %d", version, len(steps)),
			"run that version or a later one, or give this one another directory")
	}
	for ; version < len(steps); version++ {
		text, err := migrations.ReadFile(steps[version])
		if err != nil {
			return err
		}
		if err := inTransaction(ctx, db, string(text), fmt.Sprintf("PRAGMA user_version = %d", version+1)); err != nil {
			return fmt.Errorf("%s: %w", steps[version], err)
		}
	}
	return nil
}

func inTransaction(ctx context.Context, db *sql.DB, statements ...string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // Does nothing after Commit.
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return tx.Commit()
}
