package state

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// How long runs are kept: those of the last runsFor, and of these the last maxRuns.
const (
	runsFor = 30 * 24 * time.Hour
	maxRuns = 5000
)

// StartRun keeps a run that begins. With a request id that a run has already, it
// keeps nothing and returns that run and false.
func (s *Store) StartRun(ctx context.Context, r run.Run) (_ run.Run, started bool, err error) {
	started = true
	err = s.change(ctx, func(tx *sql.Tx) error {
		if r.RequestID != "" {
			found, err := read(ctx, tx, wire.DecodeRun, "SELECT body FROM runs WHERE request_id = ?", r.RequestID)
			if err != nil {
				return err
			}
			if len(found) > 0 {
				r, started = found[0], false
				return nil
			}
		}
		body, err := wire.EncodeRun(r)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO runs (id, request_id, started, body) VALUES (?, ?, ?, ?)",
			r.ID, named(r.RequestID), r.Started.UnixNano(), body)
		return err
	})
	return r, started, err
}

// AddVerdicts keeps what became of records.
func (s *Store) AddVerdicts(ctx context.Context, id string, verdicts []plan.Verdict) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		var last int64
		if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(sequence), 0) FROM verdicts WHERE run = ?", id).Scan(&last); err != nil {
			return err
		}
		insert, err := tx.PrepareContext(ctx, "INSERT INTO verdicts (run, sequence, body) VALUES (?, ?, ?)")
		if err != nil {
			return err
		}
		defer func() { _ = insert.Close() }() // The commit counts.
		for i, v := range verdicts {
			body, err := wire.EncodeVerdict(v)
			if err != nil {
				return err
			}
			if _, err := insert.ExecContext(ctx, id, last+1+int64(i), body); err != nil {
				return err
			}
		}
		return nil
	})
}

// FinishRun keeps how a run ended, and forgets old runs.
func (s *Store) FinishRun(ctx context.Context, r run.Run) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		if err := finish(ctx, tx, r); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM runs WHERE ended IS NOT NULL AND (started < ?
			OR id IN (SELECT id FROM runs ORDER BY started DESC, id LIMIT -1 OFFSET ?))`, r.Ended.Add(-runsFor).UnixNano(), maxRuns)
		return err
	})
}

func finish(ctx context.Context, tx *sql.Tx, r run.Run) error {
	body, err := wire.EncodeRun(r)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "UPDATE runs SET ended = ?, body = ? WHERE id = ?", r.Ended.UnixNano(), body, r.ID)
	return err
}

// errInterrupted is why runs ended that an earlier process left.
var errInterrupted = fault.New(fault.Aborted, "INTERRUPTED", "the cache manager stopped while the run was under way",
	"what it removed is in its verdicts; the next run goes on")

// interrupt ends the runs that an earlier process left.
func (s *Store) interrupt(ctx context.Context) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		left, err := read(ctx, tx, wire.DecodeRun, "SELECT body FROM runs WHERE ended IS NULL")
		if err != nil {
			return err
		}
		for _, r := range left {
			r.State, r.Err, r.Ended = run.Interrupted, errInterrupted, time.Now()
			if err := finish(ctx, tx, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// Runs returns runs that started before a time, newest first; with the zero time,
// from the newest on. before is that of the last run of the page before.
func (s *Store) Runs(ctx context.Context, size int, before time.Time, beforeID string) ([]run.Run, error) {
	bound := before.UnixNano()
	if before.IsZero() {
		bound = 1<<63 - 1
	}
	found, err := read(ctx, s.db, wire.DecodeRun, `SELECT body FROM runs WHERE started < ?1 OR started = ?1 AND id > ?2
		ORDER BY started DESC, id LIMIT ?3`, bound, beforeID, size)
	return found, explain(err)
}

// Run returns a run, or a NOT_FOUND fault.
func (s *Store) Run(ctx context.Context, id string) (run.Run, error) {
	found, err := read(ctx, s.db, wire.DecodeRun, "SELECT body FROM runs WHERE id = ?", id)
	if err != nil {
		return run.Run{}, explain(err)
	}
	if len(found) == 0 {
		return run.Run{}, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no run %q", id),
			"ListRuns shows those that there are; old ones are not kept for ever")
	}
	return found[0], nil
}

// Verdicts returns what became of records in a run, in the order in which that was
// found out, from a place on, from 0.
func (s *Store) Verdicts(ctx context.Context, id string, from, size int) ([]plan.Verdict, error) {
	found, err := read(ctx, s.db, wire.DecodeVerdict,
		"SELECT body FROM verdicts WHERE run = ? AND sequence > ? ORDER BY sequence LIMIT ?", id, from, size)
	return found, explain(err)
}
