package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

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
