package runlog

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Where a version of the policy is from.
const (
	fromConfiguration = "configuration"
	fromRequest       = "request"
)

// versionsKept is how many versions of the policy are kept.
const versionsKept = 1000

// Policies keeps the versions of a policy.
type Policies[P any] struct {
	Database
	Policy Codec[P]
	// Number returns a policy with another version.
	Number func(P, int64) P
	// Bare is a policy without what tells versions of one text apart.
	Bare func(P) P
}

// Configure puts the configured policy into force when there is none yet, or when the
// configuration has another one than when it was read last.
func (s *Policies[P]) Configure(ctx context.Context, p P) error {
	return s.Change(ctx, func(tx *sql.Tx) error {
		last, err := Read(ctx, tx, s.Policy.Decode, "SELECT body FROM policies WHERE source = ? ORDER BY version DESC LIMIT 1", fromConfiguration)
		if err != nil {
			return err
		}
		if len(last) > 0 {
			if same, err := s.same(last[0], p); same || err != nil {
				return err
			}
		}
		_, err = s.add(ctx, tx, p, fromConfiguration)
		return err
	})
}

// same reports whether two policies say the same.
func (s *Policies[P]) same(a, b P) (bool, error) {
	x, err1 := s.Policy.Encode(s.Bare(a))
	y, err2 := s.Policy.Encode(s.Bare(b))
	return bytes.Equal(x, y), errors.Join(err1, err2)
}

// add appends a version, and forgets old ones.
func (s *Policies[P]) add(ctx context.Context, tx *sql.Tx, p P, source string) (P, error) {
	var version int64
	if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(version), 0) + 1 FROM policies").Scan(&version); err != nil {
		return p, err
	}
	p = s.Number(p, version)
	body, err := s.Policy.Encode(p)
	if err != nil {
		return p, err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO policies (version, source, body) VALUES (?, ?, ?)", version, source, body); err != nil {
		return p, err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM policies WHERE version <= ? AND version <>
		(SELECT max(version) FROM policies WHERE source = ?)`, version-versionsKept, fromConfiguration)
	return p, err
}

// PolicyInForce returns the policy in force.
func (s *Policies[P]) PolicyInForce(ctx context.Context) (P, error) { return s.PolicyVersion(ctx, 0) }

// PolicyVersion returns a version of the policy, 0 being the one in force, or a NOT_FOUND
// fault.
func (s *Policies[P]) PolicyVersion(ctx context.Context, version int64) (P, error) {
	found, err := Read(ctx, s.DB, s.Policy.Decode, "SELECT body FROM policies WHERE version = ?1 OR ?1 = 0 ORDER BY version DESC LIMIT 1", version)
	if err == nil && len(found) > 0 {
		return found[0], nil
	}
	var none P
	if err != nil {
		return none, s.Explain(err)
	}
	return none, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no version %d of the policy", version),
		"ask for version 0, the one in force; old versions are not kept for ever")
}

// SetPolicy puts a new version of the policy into force, and returns it. When expected is not 0
// and not the version in force, it is an ABORTED fault.
func (s *Policies[P]) SetPolicy(ctx context.Context, p P, expected int64) (P, error) {
	err := s.Change(ctx, func(tx *sql.Tx) (err error) {
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
		p, err = s.add(ctx, tx, p, fromRequest)
		return err
	})
	return p, err
}
