// Package state keeps what the cache manager must know after a restart: the versions
// of the policy, pins, runs with what they did, and how caches grew.
package state

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/runlog"
	"github.com/kilnbuild/kiln/pkg/sqlitedb"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// migrations are the steps of the schema; see sqlitedb.Migrate.
//
//go:embed migrations/*.sql
var migrations embed.FS

// Store is the state in a SQLite database.
type Store struct {
	db *sql.DB
	runs
	policies

	mu    sync.Mutex
	plans map[string]*kept // by digest; they last for minutes, and are in memory only
	order []string         // of the plans, oldest first
}

// kept is a plan that can be carried out once.
type kept struct {
	plan  run.Plan
	taken bool
}

// Open opens the database at path, and makes it if it is not there. Runs that were
// under way are INTERRUPTED from then on. Close it.
func Open(ctx context.Context, path string) (_ *Store, err error) {
	if err := sqlitedb.MakePrivate(path); err != nil {
		return nil, explain(err)
	}
	db, err := sqlitedb.Open(path, 1, "busy_timeout(5000)", "journal_mode(wal)", "synchronous(normal)", "foreign_keys(on)")
	if err != nil {
		return nil, explain(err)
	}
	kept, in := map[string]*kept{}, runlog.Database{DB: db, Explain: explain}
	s := &Store{db: db, runs: runsIn(in), policies: policiesIn(in), plans: kept}
	if err := sqlitedb.Migrate(ctx, db, migrations, "migrations"); err != nil {
		return nil, errors.Join(explain(err), db.Close())
	}
	if err := s.Interrupt(ctx, interrupted); err != nil {
		return nil, errors.Join(explain(err), db.Close())
	}
	return s, nil
}

// Close gives back what the store holds.
func (s *Store) Close() error { return s.db.Close() }

func explain(err error) error { return sqlitedb.Explain("cache runs", err) }

// change makes a change in one transaction.
func (s *Store) change(ctx context.Context, apply func(tx *sql.Tx) error) error {
	return s.runs.Change(ctx, apply)
}

// nullable is NULL for the zero time.
func nullable(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixNano()
}

// named is NULL for no request id.
func named(requestID string) any {
	if requestID == "" {
		return nil
	}
	return requestID
}

// missing reports whether a row was not there.
func missing(err error) bool { return errors.Is(err, sql.ErrNoRows) }
