package aip

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.einride.tech/aip/filtering"
	expr "google.golang.org/genproto/googleapis/api/expr/v1alpha1"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Bounds of a filter.
const (
	maxLength = 4096 // bytes
	maxDepth  = 32   // conditions within one another
)

// Filter reads a filter; nil, which fits all, when text is blank. Its error is an
// INVALID_ARGUMENT fault that says what is wrong and where.
//
// AND, OR (which binds more strongly than AND), NOT, "-" and parentheses join
// comparisons of a field with a value.
func (s Schema) Filter(text string) (Filter, error) {
	if len(text) > maxLength {
		return nil, fault.Invalid("filter", "", fmt.Sprintf("is %d bytes long, more than %d", len(text), maxLength), "write a shorter filter")
	}
	// The parser does so too, and counts from there.
	trimmed := strings.TrimLeftFunc(text, unicode.IsSpace)
	if trimmed == "" {
		return nil, nil
	}
	r := reader{schema: s, text: text, skipped: len(text) - len(trimmed)}
	var parser filtering.Parser
	parser.Init(text)
	parsed, err := parser.Parse()
	if err != nil {
		return nil, r.syntax(err)
	}
	r.positions = parsed.GetSourceInfo().GetPositions()
	return r.filter(parsed.GetExpr(), 1)
}

// reader turns a parsed filter into conditions.
type reader struct {
	schema    Schema
	text      string
	skipped   int // bytes before those that the parser saw
	positions map[int64]int32
}

// filter is the condition of e, which lies that deep.
func (r *reader) filter(e *expr.Expr, depth int) (Filter, error) {
	if depth > maxDepth {
		return nil, r.wrong(e, fmt.Sprintf("more than %d conditions stand within one another", maxDepth), "write a simpler filter")
	}
	call := e.GetCallExpr()
	if call == nil {
		return nil, r.wrong(e, "a value stands where a comparison must", r.schema.example())
	}
	name, args := call.GetFunction(), call.GetArgs()
	if name == filtering.FunctionNot && len(args) == 1 {
		of, err := r.filter(args[0], depth+1)
		return Not{Of: of}, err
	}
	if len(args) != 2 {
		return nil, r.wrong(e, fmt.Sprintf("there is no condition %s(…)", name), r.schema.example())
	}
	switch name {
	case filtering.FunctionAnd:
		all, err := r.operands(e, depth)
		return And(all), err
	case filtering.FunctionOr:
		all, err := r.operands(e, depth)
		return Or(all), err
	case filtering.FunctionFuzzyAnd:
		return nil, r.wrong(args[1], "a condition follows another without a word between", "write AND or OR between conditions")
	}
	if op, ok := ops[name]; ok {
		return r.compare(e, args[0], op, args[1])
	}
	return nil, r.wrong(e, fmt.Sprintf("there is no condition %s(…)", name), r.schema.example())
}

// operands are the conditions that AND or OR joins: the parser has a AND b AND c
// as (a AND b) AND c.
func (r *reader) operands(e *expr.Expr, depth int) ([]Filter, error) {
	name := e.GetCallExpr().GetFunction()
	var parts []*expr.Expr
	for {
		call := e.GetCallExpr()
		if call.GetFunction() != name || len(call.GetArgs()) != 2 {
			break
		}
		parts = append(parts, call.GetArgs()[1])
		e = call.GetArgs()[0]
	}
	parts = append(parts, e)
	var all []Filter
	for _, part := range slices.Backward(parts) {
		f, err := r.filter(part, depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

// syntax is the fault for what the parser refused.
func (r *reader) syntax(err error) error {
	offset, what := len(r.text), ""
	for e := err; e != nil; e = errors.Unwrap(e) {
		// The innermost is the one that knows.
		if at, ok := e.(interface {
			Position() filtering.Position
			Message() string
		}); ok {
			offset, what = r.skipped+int(at.Position().Offset), at.Message()
		}
	}
	rest := strings.TrimLeftFunc(r.text[min(offset, len(r.text)):], unicode.IsSpace)
	switch {
	case errors.Is(err, io.EOF) || rest == "":
		offset, what = len(r.text), "it ends where more must follow"
	case what == "" || strings.HasPrefix(what, "unexpected"):
		word, _, _ := strings.Cut(rest, " ")
		offset, what = len(r.text)-len(rest), fmt.Sprintf("unexpected %.20q", word)
	}
	return r.at(offset, what, "put values with more than letters, digits and _ in quotes, and "+r.schema.example())
}

// wrong is the fault for an expression that is no condition.
func (r *reader) wrong(e *expr.Expr, what, remedy string) error {
	return r.at(r.skipped+int(r.positions[e.GetId()]), what, remedy)
}

// at is the fault for what begins with that byte.
func (r *reader) at(offset int, what, remedy string) error {
	character := utf8.RuneCountInString(r.text[:min(offset, len(r.text))]) + 1
	return fault.Invalid("filter", r.text, fmt.Sprintf("cannot be read at character %d: %s", character, what), remedy)
}

func (s Schema) example() string { return "write it like: " + s.Example }
