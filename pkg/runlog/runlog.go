// Package runlog keeps runs, what they did, and the versions of the policy that they
// apply, in a SQLite database. What a run, a verdict and a policy are, is the service's:
// here they are bytes, and what is looked for.
//
// The schema, which each service has among its migrations (times are Unix nanoseconds):
//
//	CREATE TABLE policies (version INTEGER PRIMARY KEY, source TEXT NOT NULL, body BLOB NOT NULL) STRICT;
//	CREATE TABLE runs (id TEXT PRIMARY KEY, request_id TEXT UNIQUE, started INTEGER NOT NULL, ended INTEGER, body BLOB NOT NULL) STRICT;
//	CREATE INDEX runs_by_start ON runs (started, id);
//	CREATE TABLE verdicts (run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE, sequence INTEGER NOT NULL,
//	  body BLOB NOT NULL, PRIMARY KEY (run, sequence)) STRICT, WITHOUT ROWID;
package runlog

import (
	"context"
	"database/sql"
	"errors"
)

// Codec writes and reads one thing as it is stored. Equal things have equal bytes.
type Codec[T any] struct {
	Encode func(T) ([]byte, error)
	Decode func([]byte) (T, error)
}

// Database is where things are kept.
type Database struct {
	DB *sql.DB
	// Explain says what is wrong when the database fails; see sqlitedb.Explain.
	Explain func(error) error
}

// Change makes a change in one transaction.
func (d Database) Change(ctx context.Context, apply func(tx *sql.Tx) error) error {
	tx, err := d.DB.BeginTx(ctx, nil)
	if err != nil {
		return d.Explain(err)
	}
	defer func() { _ = tx.Rollback() }() // Does nothing after Commit.
	if err := apply(tx); err != nil {
		return d.Explain(err)
	}
	return d.Explain(tx.Commit())
}

// Queryer is a database or a transaction.
type Queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Read reads the rows of a query, whose one column is what decode reads.
func Read[V any](ctx context.Context, from Queryer, decode func([]byte) (V, error), query string, args ...any) (_ []V, err error) {
	rows, err := from.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var all []V
	for rows.Next() {
		var body []byte
		if err := rows.Scan(&body); err != nil {
			return nil, err
		}
		v, err := decode(body)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}
