package aip

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Fits reports whether a filter fits a thing whose fields have these values: none,
// one or several, each as the kind of the field says.
func Fits(f Filter, values func(Field) []any) bool {
	switch f := f.(type) {
	case And:
		return !slices.ContainsFunc(f, func(one Filter) bool { return !Fits(one, values) })
	case Or:
		return slices.ContainsFunc(f, func(one Filter) bool { return Fits(one, values) })
	case Not:
		return !Fits(f.Of, values)
	case Compare:
		return f.fits(values(f.Field))
	default:
		return true // nil
	}
}

func (c Compare) fits(values []any) bool {
	if c.Op == NotEqual {
		return !Compare{c.Field, Equal, c.Value}.fits(values)
	}
	return slices.ContainsFunc(values, func(v any) bool {
		if c.Op == HasPrefix {
			text, _ := v.(string)
			prefix, _ := c.Value.(string)
			return strings.HasPrefix(text, prefix)
		}
		order := CompareValues(v, c.Value)
		switch c.Op {
		case Less:
			return order < 0
		case LessOrEqual:
			return order <= 0
		case Greater:
			return order > 0
		case GreaterOrEqual:
			return order >= 0
		default:
			return order == 0
		}
	})
}

// CompareValues orders two values of one field.
func CompareValues(a, b any) int {
	switch a := a.(type) {
	case string:
		b, _ := b.(string)
		return strings.Compare(a, b)
	case int64:
		b, _ := b.(int64)
		return cmp.Compare(a, b)
	case time.Duration:
		b, _ := b.(time.Duration)
		return cmp.Compare(a, b)
	case time.Time:
		b, _ := b.(time.Time)
		return a.Compare(b)
	}
	if a == b {
		return 0
	}
	return 1 // of an enum or a flag, which have no order
}
