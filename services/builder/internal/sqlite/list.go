package sqlite

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// List implements build.Store. A page begins after the place in the order where
// the one before ended, so that it does not matter what came or went between.
func (s *Store) List(ctx context.Context, query build.Query, size int, token string) ([]build.Record, string, error) {
	c, err := where(query.Filter)
	if err != nil {
		return nil, "", err
	}
	keys, err := keysOf(query.Order)
	if err != nil {
		return nil, "", err
	}
	of := identity(c, query.Order)
	if token != "" {
		at, err := parseCursor(token, of, len(keys))
		if err != nil {
			return nil, "", err
		}
		c.text.WriteString(" AND ")
		c.after(keys, at.Place)
	}
	var columns, order []string
	for _, k := range keys {
		columns = append(columns, k.column)
		order = append(order, k.column+k.direction())
	}
	text := fmt.Sprintf("SELECT record, %s FROM builds WHERE %s ORDER BY %s LIMIT ?",
		strings.Join(columns, ", "), c.text.String(), strings.Join(order, ", "))
	rows, err := s.reads.QueryContext(ctx, text, append(c.args, size+1)...)
	if err != nil {
		return nil, "", explain(err)
	}
	defer rows.Close()
	return readPage(rows, size, query.Fits, cursor{Of: of, Place: make([]any, len(keys))})
}

// readPage reads at most size records that fit, and makes of the place of the last one
// the token of the next page when there are more.
func readPage(rows *sql.Rows, size int, fits func(build.Record) bool, at cursor) ([]build.Record, string, error) {
	var all []build.Record
	var record sql.RawBytes
	place := make([]any, len(at.Place))
	targets := []any{&record}
	for i := range place {
		targets = append(targets, &place[i])
	}
	for rows.Next() {
		if len(all) == size {
			return all, at.token(), nil
		}
		if err := rows.Scan(targets...); err != nil {
			return nil, "", explain(err)
		}
		rec, err := decode(record)
		if err != nil {
			return nil, "", err
		}
		rec = rec.Summary()
		if fits != nil && !fits(rec) {
			return all, at.token(), nil
		}
		all = append(all, rec)
		copy(at.Place, place)
	}
	return all, "", explain(rows.Err())
}

// key is a column of an order.
type key struct {
	column string
	desc   bool
}

func (k key) direction() string {
	if k.desc {
		return " DESC"
	}
	return ""
}

// seqColumn is the order of coming, which is different for each build.
const seqColumn = "seq"

// keysOf are the columns of an order, with that which makes every place in it
// one of its own: newest first.
func keysOf(order []aip.Order) ([]key, error) {
	var keys []key
	for _, o := range order {
		switch o.Field {
		case build.FieldState, build.FieldProject, build.FieldOrigin, build.FieldCreateTime,
			build.FieldEndTime, build.FieldCaller, build.FieldDaemon:
			keys = append(keys, key{column: string(o.Field), desc: o.Desc})
		default:
			return nil, badQuery("builds have no order by %q", o.Field)
		}
	}
	return append(keys, key{column: seqColumn, desc: true}), nil
}

// after adds the condition that a row comes after a place in the order: beyond it
// in the first key, or there and beyond it in the second, and so on. SQLite has
// NULL before all values.
func (c *condition) after(keys []key, place []any) {
	c.text.WriteString("(")
	for i, k := range keys {
		if i > 0 {
			fmt.Fprintf(&c.text, " OR ")
		}
		for j, same := range keys[:i] {
			fmt.Fprintf(&c.text, "%s IS ? AND ", same.column)
			c.args = append(c.args, place[j])
		}
		switch {
		case k.column == seqColumn: // which is never NULL, so that its index bounds the scan
			fmt.Fprintf(&c.text, "%s < ?", k.column)
			c.args = append(c.args, place[i])
		case place[i] == nil && k.desc:
			c.text.WriteString("0")
		case place[i] == nil:
			fmt.Fprintf(&c.text, "%s IS NOT NULL", k.column)
		case k.desc:
			fmt.Fprintf(&c.text, "(%s < ? OR %s IS NULL)", k.column, k.column)
			c.args = append(c.args, place[i])
		default:
			fmt.Fprintf(&c.text, "%s > ?", k.column)
			c.args = append(c.args, place[i])
		}
	}
	c.text.WriteString(")")
}

// cursor is what a page token holds: of which query it is, and the values of the
// keys of the last record.
type cursor struct {
	Of    string
	Place []any // numbers, text and nil
}

// identity tells queries apart.
func identity(c *condition, order []aip.Order) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %v", c.text.String(), c.args, order))
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

// token is opaque to callers (AIP-158).
func (c cursor) token() string {
	text, err := json.Marshal(c)
	if err != nil {
		panic("sqlite: a cursor of text and numbers cannot be encoded: " + err.Error())
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

func parseCursor(token, of string, keys int) (cursor, error) {
	var c cursor
	text, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err == nil {
		numbers := json.NewDecoder(bytes.NewReader(text))
		numbers.UseNumber()
		err = numbers.Decode(&c)
	}
	if err != nil || c.Of != of || len(c.Place) != keys {
		return cursor{}, badToken()
	}
	for i, v := range c.Place {
		switch v := v.(type) {
		case nil, string:
		case json.Number:
			if c.Place[i], err = v.Int64(); err != nil {
				return cursor{}, badToken()
			}
		default:
			return cursor{}, badToken()
		}
	}
	return c, nil
}

func badToken() error {
	return aip.NotOfTheList()
}
