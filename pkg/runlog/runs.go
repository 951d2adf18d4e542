package runlog

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Key is what runs are found by.
type Key struct {
	ID        string
	RequestID string // empty: none
	Started   time.Time
	Ended     time.Time // zero: not yet
}

// Runs keeps runs and their verdicts.
type Runs[R, V any] struct {
	Database
	Run     Codec[R]
	Verdict Codec[V]
	Key     func(R) Key
}

// How long runs are kept: those of the last runsFor, and of these the last maxRuns.
const (
	runsFor = 30 * 24 * time.Hour
	maxRuns = 5000
)

// StartRun keeps a run that begins. With a request id that a run has already, it
// keeps nothing and returns that run and false.
func (s *Runs[R, V]) StartRun(ctx context.Context, r R) (_ R, started bool, err error) {
	started = true
	key := s.Key(r)
	err = s.Change(ctx, func(tx *sql.Tx) error {
		if key.RequestID != "" {
			found, err := Read(ctx, tx, s.Run.Decode, "SELECT body FROM runs WHERE request_id = ?", key.RequestID)
			if err != nil {
				return err
			}
			if len(found) > 0 {
				r, started = found[0], false
				return nil
			}
		}
		body, err := s.Run.Encode(r)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO runs (id, request_id, started, body) VALUES (?, ?, ?, ?)",
			key.ID, named(key.RequestID), key.Started.UnixNano(), body)
		return err
	})
	return r, started, err
}

// RunByRequest returns the run that was started with a request id, if there is one.
func (s *Runs[R, V]) RunByRequest(ctx context.Context, requestID string) (r R, found bool, err error) {
	all, err := Read(ctx, s.DB, s.Run.Decode, "SELECT body FROM runs WHERE request_id = ?", requestID)
	if err != nil || len(all) == 0 {
		return r, false, s.Explain(err)
	}
	return all[0], true, nil
}

// named is NULL for no request id.
func named(requestID string) any {
	if requestID == "" {
		return nil
	}
	return requestID
}

// AddVerdicts keeps what became of things.
func (s *Runs[R, V]) AddVerdicts(ctx context.Context, id string, verdicts []V) error {
	return s.Change(ctx, func(tx *sql.Tx) error {
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
			body, err := s.Verdict.Encode(v)
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
func (s *Runs[R, V]) FinishRun(ctx context.Context, r R) error {
	return s.Change(ctx, func(tx *sql.Tx) error {
		if err := s.update(ctx, tx, r); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM runs WHERE ended IS NOT NULL AND (started < ?
			OR id IN (SELECT id FROM runs ORDER BY started DESC, id LIMIT -1 OFFSET ?))`, s.Key(r).Ended.Add(-runsFor).UnixNano(), maxRuns)
		return err
	})
}

// UpdateRun keeps how far a run has come.
func (s *Runs[R, V]) UpdateRun(ctx context.Context, r R) error {
	return s.Change(ctx, func(tx *sql.Tx) error { return s.update(ctx, tx, r) })
}

func (s *Runs[R, V]) update(ctx context.Context, tx *sql.Tx, r R) error {
	key := s.Key(r)
	body, err := s.Run.Encode(r)
	if err != nil {
		return err
	}
	var ended any
	if !key.Ended.IsZero() {
		ended = key.Ended.UnixNano()
	}
	_, err = tx.ExecContext(ctx, "UPDATE runs SET ended = ?, body = ? WHERE id = ?", ended, body, key.ID)
	return err
}

// Interrupt changes the runs that an earlier process left.
func (s *Runs[R, V]) Interrupt(ctx context.Context, interrupted func(R) R) error {
	return s.Change(ctx, func(tx *sql.Tx) error {
		left, err := Read(ctx, tx, s.Run.Decode, "SELECT body FROM runs WHERE ended IS NULL")
		if err != nil {
			return err
		}
		for _, r := range left {
			if err := s.update(ctx, tx, interrupted(r)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Runs returns runs that started before a time, newest first; with the zero time,
// from the newest on. before is that of the last run of the page before.
func (s *Runs[R, V]) Runs(ctx context.Context, size int, before time.Time, beforeID string) ([]R, error) {
	bound := before.UnixNano()
	if before.IsZero() {
		bound = 1<<63 - 1
	}
	found, err := Read(ctx, s.DB, s.Run.Decode, `SELECT body FROM runs WHERE started < ?1 OR started = ?1 AND id > ?2
		ORDER BY started DESC, id LIMIT ?3`, bound, beforeID, size)
	return found, s.Explain(err)
}

// RunOf returns a run, or a NOT_FOUND fault.
func (s *Runs[R, V]) RunOf(ctx context.Context, id string) (R, error) {
	found, err := Read(ctx, s.DB, s.Run.Decode, "SELECT body FROM runs WHERE id = ?", id)
	if err == nil && len(found) > 0 {
		return found[0], nil
	}
	var none R
	if err != nil {
		return none, s.Explain(err)
	}
	return none, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no run %q", id),
		"ListRuns shows those that there are; old ones are not kept for ever")
}

// Verdicts returns what became of things in a run, in the order in which that was
// found out, from a place on, from 0.
func (s *Runs[R, V]) Verdicts(ctx context.Context, id string, from, size int) ([]V, error) {
	found, err := Read(ctx, s.DB, s.Verdict.Decode,
		"SELECT body FROM verdicts WHERE run = ? AND sequence > ? ORDER BY sequence LIMIT ?", id, from, size)
	return found, s.Explain(err)
}
