package storetest

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// The plain evaluation of queries that stores are held against.

// values are what a record has for a field: none, one, or several tags.
func values(rec build.Record, field aip.Field) []any {
	text := map[aip.Field]string{build.FieldProject: rec.Project, build.FieldCaller: rec.Caller, build.FieldDaemon: rec.Daemon}
	times := map[aip.Field]time.Time{build.FieldCreateTime: rec.Created, build.FieldEndTime: rec.Ended}
	var all []any
	switch field {
	case build.FieldState:
		all = append(all, rec.State)
	case build.FieldOrigin:
		all = append(all, rec.Origin)
	case build.FieldTag:
		for _, tag := range rec.Tags {
			all = append(all, tag)
		}
	default:
		if text[field] != "" {
			all = append(all, text[field])
		}
		if !times[field].IsZero() {
			all = append(all, times[field])
		}
	}
	return all
}

// fits evaluates a filter.
func fits(rec build.Record, filter aip.Filter) bool {
	this := func(f aip.Filter) bool { return fits(rec, f) }
	switch f := filter.(type) {
	case nil:
		return true
	case aip.And:
		return !slices.ContainsFunc(f, func(f aip.Filter) bool { return !this(f) })
	case aip.Or:
		return slices.ContainsFunc(f, this)
	case aip.Not:
		return !this(f.Of)
	case aip.Compare:
		if f.Op == aip.NotEqual {
			f.Op = aip.Equal
			return !this(f)
		}
		return slices.ContainsFunc(values(rec, f.Field), func(v any) bool { return holds(v, f.Op, f.Value) })
	}
	panic("storetest: an unknown filter")
}

// holds says whether a stands to b as op says.
func holds(a any, op aip.Op, b any) bool {
	if op == aip.HasPrefix {
		return strings.HasPrefix(a.(string), b.(string))
	}
	c := order(a, b)
	switch op {
	case aip.Equal:
		return c == 0
	case aip.Less:
		return c < 0
	case aip.LessOrEqual:
		return c <= 0
	case aip.Greater:
		return c > 0
	case aip.GreaterOrEqual:
		return c >= 0
	}
	panic("storetest: an unknown comparison")
}

func order(a, b any) int {
	switch a := a.(type) {
	case string:
		return cmp.Compare(a, b.(string))
	case time.Time:
		return a.Compare(b.(time.Time))
	case build.State:
		return cmp.Compare(a, b.(build.State))
	case build.Origin:
		return cmp.Compare(a, b.(build.Origin))
	}
	panic("storetest: an unknown value")
}

// list is what a store must list, all pages together. records are those that
// there are, in the order in which they were created.
func list(records []build.Record, query build.Query) []build.Record {
	all := slices.DeleteFunc(slices.Clone(records), func(rec build.Record) bool { return !fits(rec, query.Filter) })
	slices.Reverse(all)
	slices.SortStableFunc(all, func(a, b build.Record) int {
		for _, key := range query.Order {
			if c := orderBy(a, b, key.Field); c != 0 {
				if key.Desc {
					return -c
				}
				return c
			}
		}
		return 0
	})
	return all
}

func orderBy(a, b build.Record, field aip.Field) int {
	of, with := values(a, field), values(b, field)
	if len(of) == 0 || len(with) == 0 {
		return cmp.Compare(len(of), len(with))
	}
	return order(of[0], with[0])
}
