// Package filter says what callers may choose and order builds by.
package filter

import (
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

var schema = aip.Schema{
	Things:  "builds",
	Example: `state = FAILED AND (project = "web" OR tag:"localhost:5000/web") AND create_time > "2026-11-01T00:00:00Z"`,
	Fields: []aip.Of{
		enum(build.FieldState, true, "BUILD_STATE_", build.Queued, build.Running, build.Succeeded, build.Failed,
			build.Cancelled, build.TimedOut, build.Interrupted),
		{Field: build.FieldProject, Sorts: true},
		enum(build.FieldOrigin, false, "BUILD_ORIGIN_", build.OriginAPI, build.OriginGateway),
		{Field: build.FieldCreateTime, Kind: aip.Time, Sorts: true},
		{Field: build.FieldEndTime, Kind: aip.Time, Sorts: true},
		{Field: build.FieldTag},
		{Field: build.FieldCaller},
		{Field: build.FieldDaemon},
	},
}

func enum[T fmt.Stringer](field aip.Field, sorts bool, prefix string, values ...T) aip.Of {
	of := aip.Of{Field: field, Kind: aip.Enum, Prefix: prefix, Values: map[string]any{}, Sorts: sorts}
	for _, v := range values {
		name := strings.ToUpper(v.String())
		of.Values[name] = v
		of.Names = append(of.Names, name)
	}
	return of
}

// Parse reads a filter of builds; see aip.Schema. With several tags, one must fit, and
// with "!=" all.
func Parse(text string) (aip.Filter, error) { return schema.Filter(text) }

// ParseOrder reads an order of builds; see aip.Schema.
func ParseOrder(text string) ([]aip.Order, error) { return schema.Order(text) }
