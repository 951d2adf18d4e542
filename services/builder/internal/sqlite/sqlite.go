// Package sqlite keeps builds in a SQLite database: the store of a builder that
// runs alone.
//
// The database is in WAL mode with synchronous=NORMAL: a commit is in the hands
// of the kernel when it returns, so that it outlives the process; after a loss of
// power the last second may be missing, and never half a commit
// (https://www.sqlite.org/pragma.html#pragma_synchronous).
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"sync"

	"github.com/kilnbuild/kiln/pkg/sqlitedb"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Store is a build.Store in a SQLite database.
type Store struct {
	writer  *writer
	reads   *sql.DB
	log     *writeAheadLog
	stmts   statements
	packer  packer
	cancel  context.CancelFunc // ends the goroutines
	running sync.WaitGroup
}

var _ build.Store = (*Store)(nil)

// Open opens the database at path, which only its owner may read, and makes it
// if it is not there. Its directory must be there. It is a FAILED_PRECONDITION
// fault when the database is of a later version. One process at a time may have
// it open. Close it.
func Open(ctx context.Context, path string) (_ *Store, err error) {
	if err := sqlitedb.MakePrivate(path); err != nil {
		return nil, explain(err)
	}
	s := &Store{cancel: func() {}}
	defer func() {
		if err != nil {
			_ = s.Close() // The first error counts.
			err = explain(err)
		}
	}()
	// auto_vacuum counts only while the database is empty, and so comes first. No
	// commit makes a checkpoint, which waits for the disk: the log does.
	writes, err := sqlitedb.Open(path, 1, "busy_timeout(5000)", "auto_vacuum(incremental)", "journal_mode(wal)",
		"synchronous(normal)", "foreign_keys(on)", "wal_autocheckpoint(0)", "journal_size_limit(16000000)")
	if err != nil {
		return nil, err
	}
	s.writer = newWriter(writes)
	if err := sqlitedb.Migrate(ctx, writes, migrations, "migrations"); err != nil {
		return nil, err
	}
	if s.reads, err = sqlitedb.Open(path, max(4, runtime.NumCPU()), "busy_timeout(5000)", "query_only(on)"); err != nil {
		return nil, err
	}
	if s.log, err = openLog(path); err != nil {
		return nil, err
	}
	if err := s.stmts.prepare(ctx, writes, s.reads); err != nil {
		return nil, err
	}
	if s.packer, err = newPacker(); err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	s.running.Go(func() { s.writer.run(running) })
	s.running.Go(func() { s.log.run(running) })
	return s, nil
}

// Close waits for calls under way and gives back what the store holds.
func (s *Store) Close() error {
	s.cancel()
	s.running.Wait()
	var errs []error
	if s.reads != nil {
		errs = append(errs, s.stmts.close(), s.reads.Close())
	}
	if s.log != nil {
		errs = append(errs, s.log.db.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.db.Close())
	}
	s.packer.close()
	return explain(errors.Join(errs...))
}
