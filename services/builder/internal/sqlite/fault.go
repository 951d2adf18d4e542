package sqlite

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/pkg/sqlitedb"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// explain turns an error of the database into a fault. Those of the domain and
// of contexts stay as they are.
func explain(err error) error {
	if refused(err) {
		return err
	}
	explained := sqlitedb.Explain("builds", err)
	if sqlitedb.Permanent(err) {
		return fmt.Errorf("%w: %w", build.ErrRefused, explained)
	}
	return explained
}

// missing turns sql's word for a build that is not there into the domain's.
func missing(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return build.ErrUnknown
	}
	return err
}
