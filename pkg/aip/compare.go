package aip

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.einride.tech/aip/filtering"
	expr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
)

// ops are the comparisons by the parser's names.
var ops = map[string]Op{
	filtering.FunctionEquals:        Equal,
	filtering.FunctionNotEquals:     NotEqual,
	filtering.FunctionLessThan:      Less,
	filtering.FunctionLessEquals:    LessOrEqual,
	filtering.FunctionGreaterThan:   Greater,
	filtering.FunctionGreaterEquals: GreaterOrEqual,
	filtering.FunctionHas:           HasPrefix,
}

// compare is the comparison of a field with a value.
func (r *reader) compare(whole, field *expr.Expr, op Op, value *expr.Expr) (Filter, error) {
	of, known := r.schema.of(Field(field.GetIdentExpr().GetName()))
	if !known {
		return nil, r.wrong(field, "a comparison does not begin with a field's name", "the fields are "+join(r.schema.names(false)))
	}
	text, ok := literal(value, of.Kind)
	if !ok {
		return nil, r.wrong(value, "a field is compared with something that is no value",
			`compare with one value in quotes, and join comparisons by AND and OR: project = "a" OR project = "b"`)
	}
	if err := r.allows(whole, of, op); err != nil {
		return nil, err
	}
	read, what, remedy := of.read(text)
	if what != "" {
		return nil, r.wrong(value, what, remedy)
	}
	return Compare{Field: of.Field, Op: op, Value: read}, nil
}

// allows refuses comparisons that the kind of a field does not have.
func (r *reader) allows(whole *expr.Expr, of Of, op Op) error {
	switch of.Kind {
	case Enum, Flag:
		if op != Equal && op != NotEqual {
			return r.wrong(whole, fmt.Sprintf("%s has no order", of.Field), "compare it by = or !=")
		}
	case Time, Number, Span:
		if op == HasPrefix {
			return r.wrong(whole, map[Kind]string{Time: "a time", Number: "a number", Span: "a span of time"}[of.Kind]+" has no beginning to compare with",
				"compare it by <, <=, >, >=, = or !=")
		}
	case Text:
	}
	return nil
}

// read reads a value of the field, or says what is wrong with it.
func (of Of) read(text string) (_ any, what, remedy string) {
	var v any
	var err error
	switch of.Kind {
	case Enum:
		v, ok := of.Values[strings.TrimPrefix(strings.ToUpper(text), of.Prefix)]
		if !ok {
			return nil, fmt.Sprintf("there is no %s of this name", of.Field), "the names are " + join(of.Names)
		}
		return v, "", ""
	case Time:
		if v, err = time.Parse(time.RFC3339, text); err != nil {
			return nil, "this is no time as RFC 3339 has them", fmt.Sprintf(`write it like: %s > "2026-11-01T00:00:00Z"`, of.Field)
		}
	case Number:
		if v, err = strconv.ParseInt(text, 10, 64); err != nil {
			return nil, "this is no whole number", fmt.Sprintf("write it like: %s > 1000", of.Field)
		}
	case Span:
		if v, err = time.ParseDuration(text); err != nil {
			return nil, "this is no span of time", fmt.Sprintf(`write it like: %s > "48h"`, of.Field)
		}
	case Flag:
		if v, err = strconv.ParseBool(strings.ToLower(text)); err != nil {
			return nil, "this is neither true nor false", fmt.Sprintf("write it like: %s = true", of.Field)
		}
	case Text:
		v = text
	}
	return v, "", ""
}

// literal is the text of a value: in quotes, a single word, a number or a span, or for
// a time the argument of timestamp("…").
func literal(value *expr.Expr, kind Kind) (string, bool) {
	if call := value.GetCallExpr(); call.GetFunction() == filtering.FunctionTimestamp && len(call.GetArgs()) == 1 && kind == Time {
		value = call.GetArgs()[0]
	}
	if ident := value.GetIdentExpr(); ident != nil {
		return ident.GetName(), true
	}
	switch c := value.GetConstExpr().GetConstantKind().(type) {
	case *expr.Constant_StringValue:
		return c.StringValue, true
	case *expr.Constant_Int64Value:
		return strconv.FormatInt(c.Int64Value, 10), kind == Number
	}
	return "", false
}

// names are those of the fields, or of those that an order may name.
func (s Schema) names(sorts bool) (all []Field) {
	for _, of := range s.Fields {
		if of.Sorts || !sorts {
			all = append(all, of.Field)
		}
	}
	return all
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
