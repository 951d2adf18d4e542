package sqlite

import (
	"context"
	"database/sql"
	"os"
	"time"

	"github.com/kilnbuild/kiln/pkg/sqlitedb"
)

const (
	// checkpointEvery is how often what was written is taken from the log to the
	// database, and so how much a loss of power may cost.
	checkpointEvery = time.Second
	// largeLog is the size in bytes from which the log is emptied although readers
	// are always there.
	largeLog = 32 << 20
)

// writeAheadLog takes what was written from SQLite's log to the database, beside
// the writer, so that no commit waits for the disk.
type writeAheadLog struct {
	path string
	db   *sql.DB // of one connection
}

func openLog(path string) (*writeAheadLog, error) {
	// It gives up long before a writer that waits for it does.
	db, err := sqlitedb.Open(path, 1, "busy_timeout(500)", "synchronous(normal)")
	if err != nil {
		return nil, err
	}
	return &writeAheadLog{path: path + "-wal", db: db}, nil
}

// run makes checkpoints until ctx ends. One that fails, on a full disk, is tried
// again; until then the log grows.
func (l *writeAheadLog) run(ctx context.Context) {
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.checkpoint(ctx)
		}
	}
}

// checkpoint makes one that waits for nobody. The log begins anew only at a
// moment without readers; when it has grown because there was none, such a moment
// is made: writers wait until the readers of now are done.
func (l *writeAheadLog) checkpoint(ctx context.Context) {
	_, _ = l.db.ExecContext(ctx, "PRAGMA wal_checkpoint(passive)") // Tried again.
	if info, err := os.Stat(l.path); err == nil && info.Size() > largeLog {
		_, _ = l.db.ExecContext(ctx, "PRAGMA wal_checkpoint(truncate)") // Tried again.
	}
}
