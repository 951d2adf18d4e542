package state

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// Where a version of the policy is from.
const (
	fromConfiguration = "configuration"
	fromRequest       = "request"
)

// versionsKept is how many versions of the policy are kept.
const versionsKept = 1000

// Configure puts the configured policy into force when there is none yet, or when the
// configuration has another one than when it was read last.
func (s *Store) Configure(ctx context.Context, p policy.Policy, now time.Time) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		last, err := read(ctx, tx, wire.DecodePolicy, "SELECT body FROM policies WHERE source = ? ORDER BY version DESC LIMIT 1", fromConfiguration)
		if err != nil {
			return err
		}
		if len(last) > 0 {
			if same, err := sameRules(last[0], p); same || err != nil {
				return err
			}
		}
		p.Updated, p.UpdatedBy = now, ""
		_, err = add(ctx, tx, p, fromConfiguration)
		return err
	})
}

// sameRules reports whether two policies say the same.
func sameRules(a, b policy.Policy) (bool, error) {
	x, err1 := wire.EncodePolicy(policy.Policy{Rules: a.Rules, Budget: a.Budget})
	y, err2 := wire.EncodePolicy(policy.Policy{Rules: b.Rules, Budget: b.Budget})
	return bytes.Equal(x, y), errors.Join(err1, err2)
}

// add appends a version, and forgets old ones.
func add(ctx context.Context, tx *sql.Tx, p policy.Policy, source string) (policy.Policy, error) {
	if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(version), 0) + 1 FROM policies").Scan(&p.Version); err != nil {
		return p, err
	}
	body, err := wire.EncodePolicy(p)
	if err != nil {
		return p, err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO policies (version, source, body) VALUES (?, ?, ?)", p.Version, source, body); err != nil {
		return p, err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM policies WHERE version <= ? AND version <>
		(SELECT max(version) FROM policies WHERE source = ?)`, p.Version-versionsKept, fromConfiguration)
	return p, err
}

// Policy returns the policy in force.
func (s *Store) Policy(ctx context.Context) (policy.Policy, error) { return s.PolicyVersion(ctx, 0) }

// PolicyVersion returns a version of the policy, 0 being the one in force, or a
// NOT_FOUND fault.
func (s *Store) PolicyVersion(ctx context.Context, version int64) (policy.Policy, error) {
	found, err := read(ctx, s.db, wire.DecodePolicy, "SELECT body FROM policies WHERE version = ?1 OR ?1 = 0 ORDER BY version DESC LIMIT 1", version)
	if err != nil {
		return policy.Policy{}, explain(err)
	}
	if len(found) == 0 {
		return policy.Policy{}, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no version %d of the policy", version),
			"ask for version 0, the one in force; old versions are not kept for ever")
	}
	return found[0], nil
}

// SetPolicy puts a new version of the policy into force, and returns it. When
// expected is not 0 and not the version in force, it is an ABORTED fault.
func (s *Store) SetPolicy(ctx context.Context, p policy.Policy, expected int64) (policy.Policy, error) {
	err := s.change(ctx, func(tx *sql.Tx) (err error) {
		var current int64
		if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(version), 0) FROM policies").Scan(&current); err != nil {
			return err
		}
		if expected != 0 && expected != current {
			stale := fault.New(fault.Aborted, "WRONG_STATE", fmt.Sprintf("version %d of the policy is in force, not %d", current, expected),
				"read the policy again with GetPolicy, make the change upon it, and send that")
			stale.Field, stale.Value = "expected_version", fmt.Sprint(expected)
			return stale
		}
		p, err = add(ctx, tx, p, fromRequest)
		return err
	})
	return p, err
}

// missing reports whether a row was not there.
func missing(err error) bool { return errors.Is(err, sql.ErrNoRows) }
