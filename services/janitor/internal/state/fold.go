package state

import (
	"context"
	"database/sql"

	"github.com/kilnbuild/kiln/pkg/runlog"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// FinishRun keeps how a run ended, and forgets old runs. One that nobody has asked for and that did
// nothing takes the place of the one before it, if that did nothing for the same reason: else a
// daemon that is away, or a disk that stays full, would push out the runs that removed something.
func (s *Store) FinishRun(ctx context.Context, r run.Run) error {
	if err := s.runs.FinishRun(ctx, r); err != nil || !idle(r) {
		return err
	}
	return s.runs.Change(ctx, func(tx *sql.Tx) error {
		before, err := runlog.Read(ctx, tx, wire.DecodeRun,
			"SELECT body FROM runs WHERE id <> ? AND started <= ? ORDER BY started DESC, id LIMIT 1", r.ID, r.Started.UnixNano())
		if err != nil || len(before) == 0 || !idle(before[0]) || !alike(before[0], r) {
			return err
		}
		r.Folded = before[0].Folded + 1
		body, err := wire.EncodeRun(r)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "UPDATE runs SET body = ? WHERE id = ?", body, r.ID); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM runs WHERE id = ?", before[0].ID)
		return err
	})
}

// idle reports whether a run that has ended, and that nobody has asked for, did nothing.
func idle(r run.Run) bool {
	asked := r.Trigger == run.Demand || r.RequestID != ""
	over := !r.Ended.IsZero() && (r.State == run.Succeeded || r.State == run.Failed)
	return over && !asked && !r.Dry && r.Removed == (plan.Amount{}) && r.Waiting == (plan.Amount{})
}

// alike reports whether two runs did nothing for the same reason, and found the same wrong.
func alike(a, b run.Run) bool {
	x, y := wire.RunProto(a), wire.RunProto(b)
	return a.Trigger == b.Trigger && a.State == b.State && a.Dry == b.Dry && a.PolicyVersion == b.PolicyVersion && a.Broken == b.Broken &&
		x.GetError().GetMessage() == y.GetError().GetMessage() && x.GetError().GetCode() == y.GetError().GetCode()
}
