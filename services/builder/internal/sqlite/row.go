package sqlite

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// columnNames are the columns of a columns, in its order.
const columnNames = `project, state, origin, create_time, end_time, caller, daemon, tags`

// columns are the parts of a record that queries name. Two that are equal need no
// change of the indexes.
type columns struct {
	project        sql.NullString
	state          build.State
	origin         build.Origin
	created, ended sql.NullInt64
	caller, daemon sql.NullString
	tags           string
}

func columnsOf(rec build.Record) columns {
	return columns{
		project: text(rec.Project), state: rec.State, origin: rec.Origin,
		created: timestamp(rec.Created), ended: timestamp(rec.Ended),
		caller: text(rec.Caller), daemon: text(rec.Daemon),
		tags: strings.Join(rec.Tags, "\n"),
	}
}

// values are the arguments for columnNames.
func (c columns) values() []any {
	return []any{c.project, c.state, c.origin, c.created, c.ended, c.caller, c.daemon, c.tags}
}

// targets are where columnNames are scanned to.
func (c *columns) targets() []any {
	return []any{&c.project, &c.state, &c.origin, &c.created, &c.ended, &c.caller, &c.daemon, &c.tags}
}

func text(s string) sql.NullString { return sql.NullString{String: s, Valid: s != ""} }

func timestamp(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: nanoseconds(t), Valid: !t.IsZero()}
}

// The times that nanoseconds since 1970 can say.
var earliest, latest = time.Unix(0, math.MinInt64), time.Unix(0, math.MaxInt64)

// nanoseconds since 1970; the first or last of them for a time beyond those.
func nanoseconds(t time.Time) int64 {
	switch {
	case t.Before(earliest):
		return math.MinInt64
	case t.After(latest):
		return math.MaxInt64
	}
	return t.UnixNano()
}

// encode is the stored form of a record: JSON, so that a record of an earlier
// version can be read when fields have been added. A field must not be renamed
// or change its type.
func encode(rec build.Record) ([]byte, error) {
	data, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encoding the record of %s: %w", rec.ID, err)
	}
	return data, nil
}

func decode(data []byte) (rec build.Record, err error) {
	if err := json.Unmarshal(data, &rec); err != nil {
		return build.Record{}, fmt.Errorf("decoding a record: %w", err)
	}
	return rec, nil
}

// flag is how SQLite keeps a bool.
func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}
