package state

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
)

// usesFor is how long uses are kept: longer than any policy of good sense asks for.
const usesFor = 2 * 365 * 24 * time.Hour

// blobUsesFor is how long uses of blobs are kept: there are many.
const blobUsesFor = 30 * 24 * time.Hour

// RecordUses keeps when things were used. A use only ever prolongs life, so one that comes
// twice, late or in another order does no harm. It returns how many were news. That it was told of
// is kept, too.
func (s *Store) RecordUses(ctx context.Context, uses []lastuse.Use) (news int, err error) {
	err = s.runs.Change(ctx, func(tx *sql.Tx) error {
		news = 0
		for _, u := range uses {
			var pushed, pulled int64
			if u.Push {
				pushed = u.At.UnixNano()
			} else {
				pulled = u.At.UnixNano()
			}
			res, err := tx.ExecContext(ctx, `INSERT INTO uses (repository, name, pushed, pulled) VALUES (?1, ?2, ?3, ?4)
				ON CONFLICT DO UPDATE SET pushed = max(pushed, ?3), pulled = max(pulled, ?4) WHERE pushed < ?3 OR pulled < ?4`,
				u.Repository, string(u.Name), pushed, pulled)
			if err != nil {
				return err
			}
			n, err := res.RowsAffected()
			if err != nil {
				return err
			}
			news += int(n)
			if u.Heard.IsZero() {
				continue
			}
			_, err = tx.ExecContext(ctx, "UPDATE uses SET heard = max(heard, ?3) WHERE repository = ?1 AND name = ?2",
				u.Repository, string(u.Name), u.Heard.UnixNano())
			if err != nil {
				return err
			}
		}
		return nil
	})
	return news, err
}

// Uses is all that is known of uses.
func (s *Store) Uses(ctx context.Context) (*lastuse.Book, error) { return s.uses(ctx, -1) }

// UsesSince is what the janitor was told of after a time, by its own clock: the registry's may be
// another.
func (s *Store) UsesSince(ctx context.Context, since time.Time) (*lastuse.Book, error) {
	return s.uses(ctx, since.UnixNano())
}

func (s *Store) uses(ctx context.Context, heardAfter int64) (_ *lastuse.Book, err error) {
	absences, err := s.absences(ctx)
	if err != nil {
		return nil, explain(err)
	}
	book := lastuse.NewBook(absences)
	rows, err := s.db.QueryContext(ctx, "SELECT repository, name, pushed, pulled FROM uses WHERE heard > ?", heardAfter)
	if err != nil {
		return nil, explain(err)
	}
	defer func() { err = explain(errors.Join(err, rows.Close())) }()
	for rows.Next() {
		var repository, name string
		var pushed, pulled int64
		if err := rows.Scan(&repository, &name, &pushed, &pulled); err != nil {
			return nil, err
		}
		book.Add(repository, lastuse.Name(name), lastuse.Last{Pushed: timeAt(pushed), Pulled: timeAt(pulled)})
	}
	return book, rows.Err()
}

func timeAt(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos)
}

func (s *Store) absences(ctx context.Context) (all []lastuse.Absence, err error) {
	rows, err := s.db.QueryContext(ctx, "SELECT until, duration FROM away ORDER BY until")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var until, span int64
		if err := rows.Scan(&until, &span); err != nil {
			return nil, err
		}
		all = append(all, lastuse.Absence{Until: time.Unix(0, until), For: time.Duration(span)})
	}
	return all, rows.Err()
}

// slack is how late a beat may be.
const slack = 2 * time.Minute

// Beat notes that the listener is there, and if it was not lately, for how long. now is the
// time that ages are counted to, host that of the host, which measures absences. Before
// its first beat it was never there.
func (s *Store) Beat(ctx context.Context, now, host time.Time) error {
	return s.runs.Change(ctx, func(tx *sql.Tx) error {
		if err := attend(ctx, tx, now, host, true); err != nil {
			return err
		}
		old := now.Add(-usesFor).UnixNano()
		if _, err := tx.ExecContext(ctx, "DELETE FROM away WHERE until < ?", old); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM uses WHERE max(pushed, pulled) < ?", old); err != nil {
			return err
		}
		// Runs note them as uses of the manifests that name them.
		old = now.Add(-blobUsesFor).UnixNano()
		_, err := tx.ExecContext(ctx, "DELETE FROM uses WHERE name GLOB '/*' AND max(pushed, pulled) < ?", old)
		return err
	})
}

// Unheard notes that the registry is kept by runs without a listener from now on. The time since the
// listener was there last does not count as age. From the first such run on ages count by what the
// storage and builds tell: else nothing would age before a listener comes.
func (s *Store) Unheard(ctx context.Context, now, host time.Time) error {
	return s.runs.Change(ctx, func(tx *sql.Tx) error { return attend(ctx, tx, now, host, false) })
}

// attend keeps whether somebody listens, and the time that nobody did since the last beat.
func attend(ctx context.Context, tx *sql.Tx, now, host time.Time, listens bool) error {
	var last int64
	var listened bool
	err := tx.QueryRowContext(ctx, "SELECT beat, listened FROM listener").Scan(&last, &listened)
	gone := host.Sub(time.Unix(0, last))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		gone = usesFor
	case err != nil:
		return err
	case !listened && !listens:
		return nil
	}
	if gone > slack {
		_, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO away (until, duration) VALUES (?, ?)", now.UnixNano(), int64(gone))
		if err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, "INSERT OR REPLACE INTO listener (one, beat, listened) VALUES (1, ?, ?)",
		host.UnixNano(), listens)
	return err
}
