package sqlite

import (
	"fmt"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// condition is a filter as SQL: true or false, and never NULL.
type condition struct {
	text strings.Builder
	args []any
}

// where turns a filter into a condition. Only the names of columns and operators
// become text; values are arguments.
func where(filter aip.Filter) (*condition, error) {
	var c condition
	if filter == nil {
		c.text.WriteString("1")
		return &c, nil
	}
	return &c, c.add(filter)
}

func (c *condition) add(filter aip.Filter) error {
	switch f := filter.(type) {
	case aip.And:
		return c.join(f, " AND ", "1")
	case aip.Or:
		return c.join(f, " OR ", "0")
	case aip.Not:
		c.text.WriteString("NOT ")
		return c.join([]aip.Filter{f.Of}, "", "")
	case aip.Compare:
		return c.compare(f)
	}
	return badQuery("a filter cannot be a %T", filter)
}

// join adds several conditions in parentheses; none is what empty says.
func (c *condition) join(all []aip.Filter, with, empty string) error {
	c.text.WriteString("(")
	for i, f := range all {
		if i > 0 {
			c.text.WriteString(with)
		}
		if err := c.add(f); err != nil {
			return err
		}
	}
	if len(all) == 0 {
		c.text.WriteString(empty)
	}
	c.text.WriteString(")")
	return nil
}

func (c *condition) compare(f aip.Compare) error {
	value, err := argument(f)
	if err != nil {
		return err
	}
	if f.Op == aip.NotEqual {
		c.text.WriteString("NOT ")
		f.Op = aip.Equal
	}
	open, column, end := "(", string(f.Field), ")"
	if f.Field == build.FieldTag {
		open, end = "(seq IN (SELECT build FROM tags WHERE ", "))"
	}
	c.text.WriteString(open)
	switch f.Op {
	case aip.Equal, aip.Less, aip.LessOrEqual, aip.Greater, aip.GreaterOrEqual:
		fmt.Fprintf(&c.text, "%s IS NOT NULL AND %s %s ?", column, column, f.Op)
		c.args = append(c.args, value)
	case aip.HasPrefix:
		prefix, isText := value.(string)
		if !isText {
			return badQuery("%s has no prefixes", f.Field)
		}
		fmt.Fprintf(&c.text, "%s IS NOT NULL AND %s >= ?", column, column)
		c.args = append(c.args, prefix)
		if after := following(prefix); after != "" {
			fmt.Fprintf(&c.text, " AND %s < ?", column)
			c.args = append(c.args, after)
		}
	default:
		return badQuery("%q is not a comparison", f.Op)
	}
	c.text.WriteString(end)
	return nil
}

// argument is the value of a comparison as SQLite keeps it. Field and value must
// fit, so that Field can be the name of a column.
func argument(f aip.Compare) (any, error) {
	var ok bool
	var arg any
	switch f.Field {
	case build.FieldState:
		arg, ok = f.Value.(build.State)
	case build.FieldOrigin:
		arg, ok = f.Value.(build.Origin)
	case build.FieldCreateTime, build.FieldEndTime:
		var t time.Time
		t, ok = f.Value.(time.Time)
		arg = nanoseconds(t)
	case build.FieldProject, build.FieldTag, build.FieldCaller, build.FieldDaemon:
		arg, ok = f.Value.(string)
	default:
		return nil, badQuery("there is no field %q", f.Field)
	}
	if !ok {
		return nil, badQuery("%s cannot be compared with a %T", f.Field, f.Value)
	}
	return arg, nil
}

// following is the first text after all that begin with prefix, and empty when
// there is none. SQLite compares text by its bytes, as Go does.
func following(prefix string) string {
	b := []byte(prefix)
	for len(b) > 0 && b[len(b)-1] == 0xff {
		b = b[:len(b)-1]
	}
	if len(b) > 0 {
		b[len(b)-1]++
	}
	return string(b)
}

// badQuery is the fault for a query that no caller's text can lead to.
func badQuery(format string, args ...any) error {
	return fault.New(fault.Internal, "INTERNAL", "the query cannot be asked: "+fmt.Sprintf(format, args...), "report this as a fault of Kiln")
}
