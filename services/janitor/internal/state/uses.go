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

// RecordUses keeps when things were used. A use only ever prolongs life, so one that comes
// twice, late or in another order does no harm. It returns how many were news.
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
		}
		return nil
	})
	return news, err
}

// Uses is all that is known of uses.
func (s *Store) Uses(ctx context.Context) (*lastuse.Book, error) {
	return s.UsesSince(ctx, time.Time{})
}

// UsesSince is what is known of uses after a time.
func (s *Store) UsesSince(ctx context.Context, since time.Time) (_ *lastuse.Book, err error) {
	absences, err := s.absences(ctx)
	if err != nil {
		return nil, explain(err)
	}
	book := lastuse.NewBook(absences)
	after := int64(-1)
	if !since.IsZero() {
		after = since.UnixNano()
	}
	rows, err := s.db.QueryContext(ctx, "SELECT repository, name, pushed, pulled FROM uses WHERE max(pushed, pulled) > ?", after)
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
		var last int64
		err := tx.QueryRowContext(ctx, "SELECT beat FROM listener").Scan(&last)
		gone := host.Sub(time.Unix(0, last))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			gone = usesFor
		case err != nil:
			return err
		}
		if gone > slack {
			if _, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO away (until, duration) VALUES (?, ?)", now.UnixNano(), int64(gone)); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO listener (one, beat) VALUES (1, ?)", host.UnixNano()); err != nil {
			return err
		}
		old := now.Add(-usesFor).UnixNano()
		if _, err := tx.ExecContext(ctx, "DELETE FROM away WHERE until < ?", old); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM uses WHERE max(pushed, pulled) < ?", old)
		return err
	})
}
