package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Create implements build.Store.
func (s *Store) Create(ctx context.Context, rec build.Record, request []byte) (build.Record, bool, error) {
	rec.LastSeq = 0
	record, err := encode(rec)
	if err != nil {
		return build.Record{}, false, err
	}
	packed, isPacked := s.packer.pack(request)
	created, stored := false, rec
	err = s.writer.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		created, stored = false, rec // Set by a transaction that failed, perhaps.
		known, err := s.knownRequest(ctx, tx, rec)
		if err != nil {
			return err
		}
		if known.ID != "" {
			stored = known
			return nil
		}
		args := append([]any{rec.ID, text(rec.RequestID), len(record) + len(packed), record, flag(rec.State.Final())}, columnsOf(rec).values()...)
		var seq int64
		switch err := tx.StmtContext(ctx, s.stmts.insert).QueryRowContext(ctx, args...).Scan(&seq); {
		case errors.Is(err, sql.ErrNoRows):
			return fault.New(fault.AlreadyExists, "ALREADY_EXISTS", fmt.Sprintf("there is a build %q already", rec.ID), "choose another id")
		case err != nil:
			return err
		}
		if _, err := tx.StmtContext(ctx, s.stmts.insertRequest).ExecContext(ctx, seq, flag(isPacked), packed); err != nil {
			return err
		}
		created = true
		return s.writeTags(ctx, tx, seq, rec.Tags)
	})
	if err != nil {
		return build.Record{}, false, err
	}
	return stored, created, nil
}

// knownRequest is the build that has the project and the request id of rec, and
// nothing when there is none.
func (s *Store) knownRequest(ctx context.Context, tx *sql.Tx, rec build.Record) (build.Record, error) {
	if rec.RequestID == "" {
		return build.Record{}, nil
	}
	var record []byte
	err := tx.StmtContext(ctx, s.stmts.byRequestID).QueryRowContext(ctx, text(rec.Project), rec.RequestID).Scan(&record)
	if errors.Is(err, sql.ErrNoRows) {
		return build.Record{}, nil
	}
	if err != nil {
		return build.Record{}, err
	}
	return decode(record)
}

func (s *Store) writeTags(ctx context.Context, tx *sql.Tx, seq int64, tags []string) error {
	for _, tag := range tags {
		if _, err := tx.StmtContext(ctx, s.stmts.insertTag).ExecContext(ctx, seq, tag); err != nil {
			return err
		}
	}
	return nil
}

// Commit implements build.Store.
func (s *Store) Commit(ctx context.Context, rec build.Record, frames []build.Frame) error {
	return s.writer.do(ctx, func(ctx context.Context, tx *sql.Tx) error {
		return s.commit(ctx, tx, rec, frames)
	})
}

func (s *Store) commit(ctx context.Context, tx *sql.Tx, rec build.Record, frames []build.Frame) error {
	var seq, rest int64 // rest: the bytes of all but the record
	var ended bool
	var before columns
	err := tx.StmtContext(ctx, s.stmts.find).QueryRowContext(ctx, rec.ID).
		Scan(append([]any{&seq, &ended, &rec.LastSeq, &rest}, before.targets()...)...)
	if err != nil {
		return missing(err)
	}
	if ended {
		return build.ErrFinal
	}
	first := rec.LastSeq + 1
	for _, frame := range frames {
		if rec.LastSeq++; frame.Sequence != rec.LastSeq {
			return fault.Wrap(build.ErrRefused, fault.Internal, "INTERNAL", fmt.Sprintf("event %d of build %s where %d was to follow", frame.Sequence, rec.ID, rec.LastSeq),
				"report this as a fault of Kiln")
		}
	}
	for part := range parts(first, frames) {
		if _, err := tx.StmtContext(ctx, s.stmts.insertEvents).ExecContext(ctx, seq, part.first, part.data); err != nil {
			return err
		}
		rest += int64(len(part.data))
	}
	record, err := encode(rec)
	if err != nil {
		return err
	}
	now := columnsOf(rec)
	args := []any{rec.LastSeq, rest + int64(len(record)), record}
	if now == before {
		_, err = tx.StmtContext(ctx, s.stmts.update).ExecContext(ctx, append(args, seq)...)
		return err
	}
	args = append(append(append(args, flag(rec.State.Final())), now.values()...), seq)
	if _, err = tx.StmtContext(ctx, s.stmts.updateAll).ExecContext(ctx, args...); err != nil || now.tags == before.tags {
		return err
	}
	if _, err := tx.StmtContext(ctx, s.stmts.dropTags).ExecContext(ctx, seq); err != nil {
		return err
	}
	return s.writeTags(ctx, tx, seq, rec.Tags)
}

// Get implements build.Store.
func (s *Store) Get(ctx context.Context, id string) (build.Record, error) {
	var record []byte
	if err := s.stmts.get.QueryRowContext(ctx, id).Scan(&record); err != nil {
		return build.Record{}, explain(missing(err))
	}
	return decode(record)
}

// Find implements build.Store.
func (s *Store) Find(ctx context.Context, project, requestID string) (build.Record, error) {
	var record []byte
	if err := s.stmts.named.QueryRowContext(ctx, text(project), requestID).Scan(&record); err != nil {
		return build.Record{}, explain(missing(err))
	}
	return decode(record)
}

// Request implements build.Store.
func (s *Store) Request(ctx context.Context, id string) ([]byte, error) {
	var request []byte
	var packed bool
	if err := s.stmts.request.QueryRowContext(ctx, id).Scan(&packed, &request); err != nil {
		return nil, explain(missing(err))
	}
	return s.packer.unpack(request, packed)
}

// Unended implements build.Store.
func (s *Store) Unended(ctx context.Context) ([]build.Record, error) {
	return s.records(ctx, `SELECT record FROM builds WHERE ended = 0 ORDER BY seq`)
}

// records are those that a query gives in its first column, and only column.
func (s *Store) records(ctx context.Context, query string, args ...any) (_ []build.Record, err error) {
	rows, err := s.reads.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	var all []build.Record
	for rows.Next() {
		var record sql.RawBytes
		if err := rows.Scan(&record); err != nil {
			return nil, explain(err)
		}
		rec, err := decode(record)
		if err != nil {
			return nil, err
		}
		all = append(all, rec)
	}
	return all, explain(rows.Err())
}
