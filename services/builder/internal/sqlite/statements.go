package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// statements are those that every build needs several times, prepared once.
type statements struct {
	find, byRequestID, insert, insertRequest *sql.Stmt // of the writer
	update, updateAll, insertEvents          *sql.Stmt
	dropTags, insertTag, deleteBuild         *sql.Stmt
	get, named, request, frames              *sql.Stmt // of the readers
	all                                      []*sql.Stmt
}

func (s *statements) prepare(ctx context.Context, writes, reads *sql.DB) error {
	for _, p := range []struct {
		stmt **sql.Stmt
		db   *sql.DB
		text string
	}{
		{&s.find, writes, `
			SELECT seq, ended, last_event, bytes - length(record), ` + columnNames + ` FROM builds WHERE id = ?`},
		{&s.byRequestID, writes, `
			SELECT record FROM builds WHERE project IS ? AND request_id = ?`},
		{&s.insert, writes, `
			INSERT INTO builds (id, request_id, bytes, record, ended, ` + columnNames + `)
			VALUES (?, ?, ?, ?, ?,  ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING RETURNING seq`},
		{&s.insertRequest, writes, `
			INSERT INTO requests (build, zstd, request) VALUES (?, ?, ?)`},
		{&s.update, writes, `
			UPDATE builds SET last_event = ?, bytes = ?, record = ? WHERE seq = ?`},
		{&s.updateAll, writes, `
			UPDATE builds SET (last_event, bytes, record, ended, ` + columnNames + `)
			= (?, ?, ?, ?,  ?, ?, ?, ?, ?, ?, ?, ?) WHERE seq = ?`},
		{&s.insertEvents, writes, `
			INSERT INTO events (build, first, frames) VALUES (?, ?, ?)`},
		{&s.dropTags, writes, `
			DELETE FROM tags WHERE build = ?`},
		{&s.insertTag, writes, `
			INSERT INTO tags (build, tag) VALUES (?, ?) ON CONFLICT DO NOTHING`},
		{&s.deleteBuild, writes, `
			DELETE FROM builds WHERE id = ?`},
		{&s.get, reads, `
			SELECT record FROM builds WHERE id = ?`},
		{&s.named, reads, `
			SELECT record FROM builds WHERE project IS ? AND request_id = ?`},
		{&s.request, reads, `
			SELECT r.zstd, r.request FROM builds b JOIN requests r ON r.build = b.seq WHERE b.id = ?`},
		// One row with NULLs for a build that has no frames there.
		{&s.frames, reads, `
			SELECT e.first, e.frames FROM builds b LEFT JOIN events e ON e.build = b.seq
			AND b.last_event >= ?2 AND e.first >= (SELECT max(first) FROM events WHERE build = b.seq AND first <= ?2)
			WHERE b.id = ?1 ORDER BY e.first`},
	} {
		stmt, err := p.db.PrepareContext(ctx, p.text)
		if err != nil {
			return fmt.Errorf("preparing %q: %w", p.text, err)
		}
		*p.stmt = stmt
		s.all = append(s.all, stmt)
	}
	return nil
}

func (s *statements) close() error {
	var errs []error
	for _, stmt := range s.all {
		errs = append(errs, stmt.Close())
	}
	return errors.Join(errs...)
}
