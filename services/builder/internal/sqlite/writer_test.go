package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/sqlitedb"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// A change that fails in the middle takes what it wrote with it, and no other
// change that shares its transaction.
func TestChangesDoNotHarmOneAnother(t *testing.T) {
	db, err := sqlitedb.Open(filepath.Join(t.TempDir(), "test.db"), 1, "journal_mode(wal)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE t (name TEXT)"); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	insert := func(name string, then error) *change {
		return &change{result: make(chan error, 1), apply: func(ctx context.Context, tx *sql.Tx) error {
			if then == build.ErrFinal { //nolint:errorlint // a refusal comes before anything is written
				return then
			}
			_, err := tx.ExecContext(ctx, "INSERT INTO t VALUES (?)", name)
			return errors.Join(err, then)
		}}
	}
	batch := []*change{insert("a", nil), insert("b", build.ErrFinal), insert("c", broken), insert("d", nil)}
	newWriter(db).commit(t.Context(), batch)
	for i, want := range []error{nil, build.ErrFinal, broken, nil} {
		if err := <-batch[i].result; !errors.Is(err, want) {
			t.Errorf("change %d: %v, want %v", i, err, want)
		}
	}
	var names string
	if err := db.QueryRowContext(t.Context(), "SELECT group_concat(name, '') FROM t").Scan(&names); err != nil || names != "ad" {
		t.Errorf("%q was written, error %v; want ad", names, err)
	}
}

// A change with a defect fails alone: others that share its transaction are made, and the
// writer goes on.
func TestWriter_PanicFailsTheChangeAlone(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "builds.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	err = s.writer.do(t.Context(), func(context.Context, *sql.Tx) error { panic("a defect") })
	if _, panicked := errors.AsType[*lifecycle.PanicError](err); !panicked {
		t.Errorf("the change ended with %v", err)
	}
	if err := s.AddRemoval(t.Context(), "d", "ref"); err != nil {
		t.Errorf("the next change: %v", err)
	}
}
