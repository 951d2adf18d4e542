package state

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/runlog"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// maxPins bounds the pins, each of which every plan looks at.
const maxPins = 10_000

// AddPin keeps a pin. With a request id that a pin has already, that one is returned
// if it is the same; else it is an ALREADY_EXISTS fault.
func (s *Store) AddPin(ctx context.Context, p policy.Pin, requestID string) (policy.Pin, error) {
	err := s.change(ctx, func(tx *sql.Tx) error {
		mark, err := fingerprint(p)
		if err != nil {
			return err
		}
		if requestID != "" {
			var other string
			var body []byte
			switch err := tx.QueryRowContext(ctx, "SELECT fingerprint, body FROM pins WHERE request_id = ?", requestID).Scan(&other, &body); {
			case missing(err):
			case err != nil:
				return err
			case other != mark:
				clash := fault.New(fault.AlreadyExists, "ALREADY_EXISTS", fmt.Sprintf("request_id %q belongs to another pin", requestID),
					"send the same request again to have the same pin, or choose a new request_id for a new one")
				clash.Field, clash.Value = "request_id", requestID
				return clash
			default:
				p, err = wire.DecodePin(body)
				return err
			}
		}
		var count int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM pins").Scan(&count); err != nil {
			return err
		}
		if count >= maxPins {
			return fault.New(fault.ResourceExhausted, "LIMIT_REACHED", fmt.Sprintf("there are %d pins, the limit", maxPins),
				"remove some with Unpin, or use one that matches many records")
		}
		body, err := wire.EncodePin(p)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO pins (id, request_id, fingerprint, created, expires, body) VALUES (?, ?, ?, ?, ?, ?)",
			p.ID, named(requestID), mark, p.Created.UnixNano(), nullable(p.Expires), body)
		return err
	})
	return p, err
}

// fingerprint is the same for pins that keep the same, for as long.
func fingerprint(p policy.Pin) (string, error) {
	var life time.Duration
	if !p.Expires.IsZero() {
		life = p.Expires.Sub(p.Created)
	}
	p.ID, p.Created, p.Expires = "", time.Time{}, time.Time{}
	body, err := wire.EncodePin(p)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append(body, life.String()...))
	return hex.EncodeToString(sum[:]), nil
}

// Pins returns the pins that have not expired, newest first, and forgets the others.
func (s *Store) Pins(ctx context.Context, now time.Time) ([]policy.Pin, error) {
	var all []policy.Pin
	err := s.change(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM pins WHERE expires <= ?", now.UnixNano()); err != nil {
			return err
		}
		var err error
		all, err = runlog.Read(ctx, tx, wire.DecodePin, "SELECT body FROM pins ORDER BY created DESC, id")
		return err
	})
	return all, err
}

// RemovePin removes a pin and returns it, or a NOT_FOUND fault.
func (s *Store) RemovePin(ctx context.Context, id string) (p policy.Pin, err error) {
	err = s.change(ctx, func(tx *sql.Tx) error {
		var body []byte
		switch err := tx.QueryRowContext(ctx, "DELETE FROM pins WHERE id = ? RETURNING body", id).Scan(&body); {
		case missing(err):
			return fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no pin %q", id), "ListPins shows those that there are")
		case err != nil:
			return err
		}
		p, err = wire.DecodePin(body)
		return err
	})
	return p, err
}
