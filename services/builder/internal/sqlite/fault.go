package sqlite

import (
	"context"
	"database/sql"
	"errors"

	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// explain turns an error of the database into a fault. Those of the domain and
// of contexts stay as they are.
func explain(err error) error {
	if err == nil || refused(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
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
		return fault.Wrap(err, fault.ResourceExhausted, "DISK_FULL", "the disk that builds are recorded on is full",
			"free space on the disk of the builder's state directory, or let it keep fewer builds")
	case code&0xff == sqlite3.SQLITE_CORRUPT, code&0xff == sqlite3.SQLITE_NOTADB:
		return fault.Wrap(err, fault.Internal, "INTERNAL", "the database of builds is damaged",
			"restore it from a backup, or move it away to begin with an empty one")
	}
	return fault.Wrap(err, fault.Internal, "INTERNAL", "the database of builds failed", "look at the disk of the builder's state directory")
}

// missing turns sql's word for a build that is not there into the domain's.
func missing(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return build.ErrUnknown
	}
	return err
}
