package aip_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/pkg/fault"
)

// What builds are filtered by has its tests with the builder; here are the other kinds,
// and what fits.
var schema = aip.Schema{
	Things: "things", Example: "size > 5",
	Fields: []aip.Of{
		{Field: "size", Kind: aip.Number, Sorts: true},
		{Field: "age", Kind: aip.Span},
		{Field: "used", Kind: aip.Flag},
		{Field: "name"},
		{Field: "made", Kind: aip.Time},
		{Field: "kind", Kind: aip.Enum, Prefix: "KIND_", Values: map[string]any{"A": "a", "B": "b"}, Names: []string{"A", "B"}},
	},
}

func TestFits(t *testing.T) {
	november := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	things := map[aip.Field][]any{
		"size": {int64(7)}, "age": {36 * time.Hour}, "used": {true}, "name": {"web-1", "web-2"}, "made": {november}, "kind": {"a"},
	}
	for text, want := range map[string]bool{
		"":                                  true,
		"size = 7":                          true,
		`size = "7"`:                        true,
		"size > 7":                          false,
		"size >= 7 AND size < 8":            true,
		"size != 7":                         false,
		`age > "24h"`:                       true,
		`age <= "36h"`:                      true,
		`age < "36h"`:                       false,
		"used = true":                       true,
		"used = FALSE":                      false,
		"used != false":                     true,
		`name = "web-2"`:                    true,
		`name != "web-2"`:                   false,
		`name:"web"`:                        true,
		`name:"w" AND -name:"x"`:            true,
		`name > "web-1"`:                    true,
		"kind = a":                          true,
		"kind = KIND_B OR size < 5":         false,
		`made >= "2026-11-01T00:00:00Z"`:    true,
		`made < "2026-11-01T00:00:00Z"`:     false,
		`NOT made < "2026-11-01T00:00:00Z"`: true,
	} {
		f, err := schema.Filter(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := aip.Fits(f, func(name aip.Field) []any { return things[name] }); got != want {
			t.Errorf("%s: %v", text, got)
		}
		nothing := aip.Fits(f, func(aip.Field) []any { return nil })
		if compared, ok := f.(aip.Compare); ok && nothing != (compared.Op == aip.NotEqual) {
			t.Errorf("%s fits what has no value: %v", text, nothing)
		}
	}
}

func TestRefuses(t *testing.T) {
	for text, says := range map[string]string{
		"size = big":    "this is no whole number",
		"size:7":        "a number has no beginning",
		"age > 5":       "a field is compared with something that is no value",
		`age > "x"`:     "this is no span of time",
		"used = maybe":  "neither true nor false",
		"used > true":   "used has no order",
		"kind = c":      "there is no kind of this name",
		"colour = blue": "a comparison does not begin with a field's name",
	} {
		_, err := schema.Filter(text)
		e, ok := errors.AsType[*fault.Error](err)
		if !ok || e.Kind != fault.InvalidArgument || e.Field != "filter" || e.Remedy == "" || !strings.Contains(e.Message, says) {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
	}
	if _, err := schema.Order("age"); err == nil {
		t.Error("an order by a field that does not sort")
	}
	if order, err := schema.Order("size desc"); err != nil || len(order) != 1 || !order[0].Desc {
		t.Errorf("%v, %v", order, err)
	}
}
