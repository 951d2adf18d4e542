package state

import (
	"cmp"
	"context"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/kilnbuild/kiln/pkg/runlog"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// lookBack is among how many runs the last one of the same trigger is looked for.
const lookBack = 10

// FinishRun keeps how a run ended, and forgets old runs. A run of the schedule that did nothing, as the
// one before it, takes the place of that one: the log is kept for what was removed.
func (s *Store) FinishRun(ctx context.Context, r run.Run) error {
	if !idle(r) {
		return s.runs.FinishRun(ctx, r)
	}
	before, err := runlog.Read(ctx, s.db, wire.DecodeRun,
		"SELECT body FROM runs WHERE ended IS NOT NULL AND id <> ? ORDER BY started DESC, id LIMIT ?", r.ID, lookBack)
	if err != nil {
		return explain(err)
	}
	var folded string
	for _, b := range before {
		if b.Trigger != r.Trigger || b.Dry {
			continue
		}
		if idle(b) && alike(b, r) {
			folded, r.Folded, r.FoldedSince = b.ID, b.Folded+1, b.FoldedSince
			if r.FoldedSince.IsZero() {
				r.FoldedSince = b.Started
			}
		}
		break
	}
	if err := s.runs.FinishRun(ctx, r); err != nil || folded == "" {
		return err
	}
	_, err = s.db.ExecContext(ctx, "DELETE FROM runs WHERE id = ?", folded)
	return explain(err)
}

// idle reports whether a run of the schedule removed nothing.
func idle(r run.Run) bool {
	return (r.Trigger == run.Schedule || r.Trigger == run.FreeDisk) && !r.Dry && r.Removed.Records == 0 && r.Removed.Bytes == 0
}

// alike reports whether two runs went the same way on the same caches, for the same reasons.
func alike(a, b run.Run) bool {
	if a.State != b.State || a.PolicyVersion != b.PolicyVersion || a.Held != b.Held || len(a.Caches) != len(b.Caches) {
		return false
	}
	x, y := wire.RunProto(a), wire.RunProto(b)
	if a.Held == 0 && !sameError(x.GetError(), y.GetError()) { // why a policy is held tells figures
		return false
	}
	for i := range x.GetCaches() {
		p, q := x.GetCaches()[i], y.GetCaches()[i]
		if a.Caches[i].Cache != b.Caches[i].Cache || p.GetState() != q.GetState() || !sameError(p.GetError(), q.GetError()) ||
			p.GetUnreadableRecords() != q.GetUnreadableRecords() {
			return false
		}
	}
	return true
}

func sameError(a, b *statuspb.Status) bool {
	return cmp.Or(cmp.Compare(a.GetCode(), b.GetCode()), cmp.Compare(a.GetMessage(), b.GetMessage())) == 0
}
