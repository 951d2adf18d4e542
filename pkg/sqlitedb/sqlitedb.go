// Package sqlitedb opens SQLite databases that a service keeps its state in, brings
// them to the schema of its version, and says what is wrong when they fail.
package sqlitedb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// MakePrivate makes the file of a database if it is not there, for its owner only, so
// that SQLite does not make it with permissions of its own; its log gets those of the
// database.
func MakePrivate(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(file.Chmod(0o600), file.Close())
}

// Open makes a pool of at most that many connections, each with the given pragmas,
// such as "journal_mode(wal)". Transactions that write take the lock when they begin.
func Open(path string, connections int, pragmas ...string) (*sql.DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	options := url.Values{"_txlock": {"immediate"}, "_pragma": pragmas}
	name := url.URL{Scheme: "file", Path: path, RawQuery: options.Encode()}
	connector, err := driver.NewConnector(name.String())
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}

// Migrate brings a database to the schema of this version by those *.sql files of a
// directory that it has not had yet, in the order of their names, each in one
// transaction. SQLite's user_version counts them. A file that was released is never
// changed: the next one changes what it made. A database of a later version is a
// FAILED_PRECONDITION fault.
func Migrate(ctx context.Context, db *sql.DB, files fs.FS, directory string) error {
	steps, err := fs.Glob(files, directory+"/*.sql")
	if err != nil {
		return err
	}
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version > len(steps) {
		return fault.New(fault.FailedPrecondition, "WRONG_STATE",
			fmt.Sprintf("the store was written by a later version of Kiln: its schema is %d, this version knows %d", version, len(steps)),
			"run that version or a later one, or give this one another directory")
	}
	for ; version < len(steps); version++ {
		text, err := fs.ReadFile(files, steps[version])
		if err != nil {
			return err
		}
		if err := inTransaction(ctx, db, string(text), fmt.Sprintf("PRAGMA user_version = %d", version+1)); err != nil {
			return fmt.Errorf("%s: %w", steps[version], err)
		}
	}
	return nil
}

func inTransaction(ctx context.Context, db *sql.DB, statements ...string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // Does nothing after Commit.
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// Permanent reports whether a write that failed fails again however often it is tried:
// it is too large, or breaks a constraint, or the database is damaged.
func Permanent(err error) bool {
	e, ok := errors.AsType[*driver.Error](err)
	if !ok {
		return errors.Is(err, sql.ErrConnDone)
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE,
		sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return true
	}
	return false
}

// Explain turns an error of a database into a fault: RESOURCE_EXHAUSTED (DISK_FULL)
// when its disk is full, else INTERNAL. What it keeps is for people, such as
// "builds". Faults and the ends of contexts stay as they are.
func Explain(what string, err error) error {
	if _, known := errors.AsType[*fault.Error](err); err == nil || known ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	code := 0
	if e, ok := errors.AsType[*driver.Error](err); ok {
		code = e.Code()
	}
	switch {
	// The shared memory beside the database is a file too, which cannot grow when
	// the disk is full.
	case code&0xff == sqlite3.SQLITE_FULL, code == sqlite3.SQLITE_IOERR_SHMSIZE:
		return fault.Wrap(err, fault.ResourceExhausted, "DISK_FULL", fmt.Sprintf("the disk that %s are recorded on is full", what),
			"free space on the disk of state_dir, or let less be kept")
	case code&0xff == sqlite3.SQLITE_CORRUPT, code&0xff == sqlite3.SQLITE_NOTADB:
		return fault.Wrap(err, fault.Internal, "INTERNAL", fmt.Sprintf("the database of %s is damaged", what),
			"restore it from a backup, or move it away to begin with an empty one")
	}
	return fault.Wrap(err, fault.Internal, "INTERNAL", fmt.Sprintf("the database of %s failed", what), "look at the disk of state_dir")
}
