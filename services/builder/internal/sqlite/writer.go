package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// maxTogether is how many changes share a transaction at most. With 64 builds at
// once it makes three times as many commits a second as 1 (BenchmarkCommit).
const maxTogether = 64

// writer makes the changes to the database, one after another. Changes that wait
// at the same time share a transaction.
type writer struct {
	db      *sql.DB // of one connection
	waiting chan *change
	stopped chan struct{}
}

// change is what one call wants to be written.
type change struct {
	// apply makes it. When it returns a fault, build.ErrFinal or build.ErrUnknown,
	// it has written nothing; any other error ends the transaction.
	apply  func(ctx context.Context, tx *sql.Tx) error
	result chan error
}

func newWriter(db *sql.DB) *writer {
	return &writer{db: db, waiting: make(chan *change), stopped: make(chan struct{})}
}

// do makes a change and returns when it is made. The end of ctx ends the wait for
// its turn, but nothing that was begun.
func (w *writer) do(ctx context.Context, apply func(ctx context.Context, tx *sql.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &change{apply: apply, result: make(chan error, 1)}
	select {
	case w.waiting <- c:
		return explain(<-c.result)
	case <-ctx.Done():
		return ctx.Err()
	case <-w.stopped:
		return fault.Wrap(build.ErrRefused, fault.Unavailable, "SHUTTING_DOWN", "the store is closed", "call again when the builder has started again")
	}
}

// run makes changes until ctx ends.
func (w *writer) run(ctx context.Context) {
	defer close(w.stopped)
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-w.waiting:
			w.commit(context.WithoutCancel(ctx), w.together(c))
		}
	}
}

// together is a change and those that wait now.
func (w *writer) together(c *change) []*change {
	batch := []*change{c}
	for len(batch) < maxTogether {
		select {
		case c := <-w.waiting:
			batch = append(batch, c)
		default:
			return batch
		}
	}
	return batch
}

// commit makes changes in one transaction and says to each what became of it.
// When that fails, each gets a transaction of its own, so that none suffers from
// another.
func (w *writer) commit(ctx context.Context, batch []*change) {
	results, err := w.try(ctx, batch)
	if err != nil && len(batch) > 1 {
		for _, c := range batch {
			w.commit(ctx, []*change{c})
		}
		return
	}
	for i, c := range batch {
		if err != nil {
			c.result <- err
		} else {
			c.result <- results[i]
		}
	}
}

func (w *writer) try(ctx context.Context, batch []*change) ([]error, error) {
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	results := make([]error, len(batch))
	for i, c := range batch {
		err := lifecycle.Protect(ctx, func(ctx context.Context) error { return c.apply(ctx, tx) })
		if refused(err) {
			results[i] = err
		} else if err != nil {
			_ = tx.Rollback() // SQLite may have rolled back already.
			return nil, err
		}
	}
	return results, tx.Commit()
}

// refused says whether a change was refused before it wrote anything.
func refused(err error) bool {
	_, isFault := errors.AsType[*fault.Error](err)
	return isFault || errors.Is(err, build.ErrFinal) || errors.Is(err, build.ErrUnknown)
}
