// Package state keeps what the janitor must know after a restart: the versions of the
// policy, runs with what they did, uses, and leases.
package state

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/runlog"
	"github.com/kilnbuild/kiln/pkg/sqlitedb"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// migrations are the steps of the schema; see sqlitedb.Migrate.
//
//go:embed migrations/*.sql
var migrations embed.FS

type (
	runs     = runlog.Runs[run.Run, plan.Verdict]
	policies = runlog.Policies[policy.Policy]
)

// Store is the state in a SQLite database.
type Store struct {
	db *sql.DB
	runs
	policies
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
	in := runlog.Database{DB: db, Explain: explain}
	s := &Store{
		db: db,
		runs: runs{
			Database: in, Run: runlog.Codec[run.Run]{Encode: wire.EncodeRun, Decode: wire.DecodeRun},
			Verdict: runlog.Codec[plan.Verdict]{Encode: wire.EncodeVerdict, Decode: wire.DecodeVerdict},
			Key: func(r run.Run) runlog.Key {
				return runlog.Key{ID: r.ID, RequestID: r.RequestID, Started: r.Started, Ended: r.Ended}
			},
		},
		policies: policies{
			Database: in, Policy: runlog.Codec[policy.Policy]{Encode: wire.EncodePolicy, Decode: wire.DecodePolicy},
			Number: func(p policy.Policy, version int64) policy.Policy { p.Version = version; return p },
			Bare: func(p policy.Policy) policy.Policy {
				p.Version, p.Updated, p.UpdatedBy, p.Comment = 0, time.Time{}, "", ""
				return p
			},
		},
	}
	if err := sqlitedb.Migrate(ctx, db, migrations, "migrations"); err != nil {
		return nil, errors.Join(explain(err), db.Close())
	}
	if err := s.Interrupt(ctx, interrupted); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// errInterrupted is why runs ended that an earlier process left.
var errInterrupted = fault.New(fault.Aborted, "INTERRUPTED", "the janitor stopped while the run was under way",
	"what it took is in quarantine; the run is taken up again, or the next one goes on")

func interrupted(r run.Run) run.Run {
	r.State, r.Err, r.Ended = run.Interrupted, errInterrupted, time.Now()
	return r
}

// Close gives back what the store holds.
func (s *Store) Close() error { return s.db.Close() }

func explain(err error) error { return sqlitedb.Explain("registry runs", err) }

// Configure puts the configured policy into force when there is none yet, or when the
// configuration has another one than when it was read last.
func (s *Store) Configure(ctx context.Context, p policy.Policy, now time.Time) error {
	p.Updated, p.UpdatedBy = now, ""
	return s.policies.Configure(ctx, p)
}

// TakeUp keeps a run that is under way again; one that this store does not know of, from
// another host, is new to it.
func (s *Store) TakeUp(ctx context.Context, r run.Run) error {
	known, err := s.RunOf(ctx, r.ID)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		r.RequestID = ""
		_, _, err = s.StartRun(ctx, r)
		return err
	case err != nil:
		return err
	}
	r.RequestID = known.RequestID
	return s.UpdateRun(ctx, r)
}
