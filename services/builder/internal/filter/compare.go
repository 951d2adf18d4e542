package filter

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.einride.tech/aip/filtering"
	expr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// ops are the comparisons by the parser's names.
var ops = map[string]build.Op{
	filtering.FunctionEquals:        build.Equal,
	filtering.FunctionNotEquals:     build.NotEqual,
	filtering.FunctionLessThan:      build.Less,
	filtering.FunctionLessEquals:    build.LessOrEqual,
	filtering.FunctionGreaterThan:   build.Greater,
	filtering.FunctionGreaterEquals: build.GreaterOrEqual,
	filtering.FunctionHas:           build.HasPrefix,
}

// fields are those that a filter may name.
var fields = []build.Field{
	build.FieldState, build.FieldProject, build.FieldOrigin, build.FieldCreateTime,
	build.FieldEndTime, build.FieldTag, build.FieldCaller, build.FieldDaemon,
}

// compare is the comparison of a field with a value.
func (r *reader) compare(whole, field *expr.Expr, op build.Op, value *expr.Expr) (build.Filter, error) {
	name := build.Field(field.GetIdentExpr().GetName())
	if !slices.Contains(fields, name) {
		return nil, r.wrong(field, "a comparison does not begin with a field's name", "the fields are "+join(fields))
	}
	text, ok := literal(value, name)
	if !ok {
		return nil, r.wrong(value, "a field is compared with something that is no value",
			`compare with one value in quotes, and join comparisons by AND and OR: project = "a" OR project = "b"`)
	}
	c := build.Compare{Field: name, Op: op}
	switch name {
	case build.FieldState, build.FieldOrigin:
		if op != build.Equal && op != build.NotEqual {
			return nil, r.wrong(whole, fmt.Sprintf("%s has no order", name), "compare it by = or !=")
		}
		known := names[name]
		if c.Value, ok = known.values[strings.TrimPrefix(strings.ToUpper(text), known.prefix)]; !ok {
			return nil, r.wrong(value, fmt.Sprintf("there is no %s of this name", name), "the names are "+known.list)
		}
	case build.FieldCreateTime, build.FieldEndTime:
		if op == build.HasPrefix {
			return nil, r.wrong(whole, "a time has no beginning to compare with", "compare it by <, <=, >, >=, = or !=")
		}
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return nil, r.wrong(value, "this is no time as RFC 3339 has them", fmt.Sprintf(`write it like: %s > "2026-11-01T00:00:00Z"`, name))
		}
		c.Value = t
	default:
		c.Value = text
	}
	return c, nil
}

// literal is the text of a value: in quotes, a single word, or for a time the
// argument of timestamp("…").
func literal(value *expr.Expr, field build.Field) (string, bool) {
	if call := value.GetCallExpr(); call.GetFunction() == filtering.FunctionTimestamp && len(call.GetArgs()) == 1 &&
		(field == build.FieldCreateTime || field == build.FieldEndTime) {
		value = call.GetArgs()[0]
	}
	if ident := value.GetIdentExpr(); ident != nil {
		return ident.GetName(), true
	}
	text, ok := value.GetConstExpr().GetConstantKind().(*expr.Constant_StringValue)
	if !ok {
		return "", false
	}
	return text.StringValue, true
}

// enum is the values of a field that has a few, by their names in the contract
// without the prefix.
type enum struct {
	prefix string
	values map[string]any
	list   string
}

var names = map[build.Field]enum{
	build.FieldState: enumOf("BUILD_STATE_", build.Queued, build.Running, build.Succeeded, build.Failed,
		build.Cancelled, build.TimedOut, build.Interrupted),
	build.FieldOrigin: enumOf("BUILD_ORIGIN_", build.OriginAPI, build.OriginGateway),
}

func enumOf[T fmt.Stringer](prefix string, values ...T) enum {
	e := enum{prefix: prefix, values: make(map[string]any)}
	var list []string
	for _, v := range values {
		name := strings.ToUpper(v.String())
		e.values[name] = v
		list = append(list, name)
	}
	e.list = join(list)
	return e
}

// join is a list for a sentence.
func join[T ~string](list []T) string {
	var b strings.Builder
	for i, item := range list {
		switch {
		case i == 0:
		case i == len(list)-1:
			b.WriteString(" and ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(item))
	}
	return b.String()
}
