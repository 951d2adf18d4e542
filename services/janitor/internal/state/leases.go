package state

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/runlog"
	"github.com/kilnbuild/kiln/services/janitor/internal/lease"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// maxLeases bounds the leases that there are at one time.
const maxLeases = 10_000

// AcquireLease keeps a lease. With a request id that one has already, which is on the same,
// it returns that one.
func (s *Store) AcquireLease(ctx context.Context, l lease.Lease) (lease.Lease, error) {
	err := s.runs.Change(ctx, func(tx *sql.Tx) error {
		if l.RequestID != "" {
			found, err := leasesIn(ctx, tx, "WHERE request_id = ?", l.RequestID)
			if err != nil {
				return err
			}
			if len(found) > 0 && found[0].Expires.After(l.Created) {
				if !slices.Equal(found[0].References, l.References) || found[0].Export != l.Export {
					return fault.New(fault.AlreadyExists, "ALREADY_EXISTS", fmt.Sprintf("request_id %q belongs to another lease", l.RequestID), "choose a new one for each lease, best a random UUID")
				}
				l = found[0]
				return nil
			}
		}
		if err := s.expire(ctx, tx, l.Created); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM leases").Scan(&n); err != nil {
			return err
		}
		if n >= maxLeases {
			return fault.New(fault.ResourceExhausted, "LIMIT_REACHED", fmt.Sprintf("there are %d leases", n), "release leases when builds end, or take them for shorter")
		}
		return put(ctx, tx, l)
	})
	return l, err
}

func put(ctx context.Context, tx *sql.Tx, l lease.Lease) error {
	body, err := wire.EncodeLease(l)
	if err != nil {
		return err
	}
	var requestID any
	if l.RequestID != "" {
		requestID = l.RequestID
	}
	_, err = tx.ExecContext(ctx, "INSERT OR REPLACE INTO leases (id, request_id, expires, ttl, body) VALUES (?, ?, ?, ?, ?)",
		l.ID, requestID, l.Expires.UnixNano(), int64(l.TTL), body)
	return err
}

func leasesIn(ctx context.Context, from runlog.Queryer, where string, args ...any) ([]lease.Lease, error) {
	return runlog.Read(ctx, from, wire.DecodeLease, "SELECT body FROM leases "+where, args...)
}

// RenewLease makes a lease last longer; ttl 0 is as long as at first. It is a NOT_FOUND
// fault for one that has ended.
func (s *Store) RenewLease(ctx context.Context, id string, ttl time.Duration, now time.Time) (l lease.Lease, err error) {
	err = s.runs.Change(ctx, func(tx *sql.Tx) error {
		found, err := leasesIn(ctx, tx, "WHERE id = ? AND expires > ?", id, now.UnixNano())
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no lease %q", id), "take a new one with AcquireLease, and renew it well before it expires")
		}
		l = found[0]
		if ttl == 0 {
			ttl = l.TTL
		}
		l.Expires = now.Add(ttl)
		return put(ctx, tx, l)
	})
	return l, err
}

// ReleaseLease ends a lease. Its end is a use of what it was on.
func (s *Store) ReleaseLease(ctx context.Context, id string, now time.Time) error {
	return s.runs.Change(ctx, func(tx *sql.Tx) error {
		found, err := leasesIn(ctx, tx, "WHERE id = ?", id)
		if err != nil || len(found) == 0 {
			return err
		}
		l := found[0]
		if now.Before(l.Expires) {
			l.Expires = now
		}
		return end(ctx, tx, l)
	})
}

// Leases are those that have not ended.
func (s *Store) Leases(ctx context.Context, now time.Time) (all lease.Set, err error) {
	err = s.runs.Change(ctx, func(tx *sql.Tx) error {
		if err := s.expire(ctx, tx, now); err != nil {
			return err
		}
		all, err = leasesIn(ctx, tx, "ORDER BY id")
		return err
	})
	return all, err
}

// ReviveLeases has leases last as long again as when they were taken: while the janitor was away, the
// builds that hold them could not renew them.
func (s *Store) ReviveLeases(ctx context.Context, now time.Time) error {
	return s.runs.Change(ctx, func(tx *sql.Tx) error {
		all, err := leasesIn(ctx, tx, "")
		if err != nil {
			return err
		}
		for _, l := range all {
			if until := now.Add(l.TTL); until.After(l.Expires) {
				l.Expires = until
				if err := put(ctx, tx, l); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// expire ends the leases whose time is over.
func (s *Store) expire(ctx context.Context, tx *sql.Tx, now time.Time) error {
	over, err := leasesIn(ctx, tx, "WHERE expires <= ?", now.UnixNano())
	if err != nil {
		return err
	}
	for _, l := range over {
		if err := end(ctx, tx, l); err != nil {
			return err
		}
	}
	return nil
}

// end takes a lease away, and notes its end as a use.
func end(ctx context.Context, tx *sql.Tx, l lease.Lease) error {
	for _, r := range l.Of {
		column := "pulled"
		if l.Export {
			column = "pushed"
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO uses (repository, name, pushed, pulled) VALUES (?1, ?2, 0, 0) ON CONFLICT DO NOTHING`, r.Repository, string(r.Name()))
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "UPDATE uses SET "+column+" = max("+column+", ?3), heard = max(heard, ?3) WHERE repository = ?1 AND name = ?2", r.Repository, string(r.Name()), l.Expires.UnixNano())
		if err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, "DELETE FROM leases WHERE id = ?", l.ID)
	return err
}
