package filter

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// maxOrderLength is in bytes.
const maxOrderLength = 256

// sortable are the fields that an order may name.
var sortable = []build.Field{build.FieldCreateTime, build.FieldEndTime, build.FieldProject, build.FieldState}

// ParseOrder reads an order: names of fields with commas between, each followed
// by "desc", "asc" or nothing; nil when text is blank. Its error is an
// INVALID_ARGUMENT fault that says what is wrong and where.
func ParseOrder(text string) ([]build.Order, error) {
	if len(text) > maxOrderLength {
		return nil, fault.Invalid("order_by", "", fmt.Sprintf("is %d bytes long, more than %d", len(text), maxOrderLength), "write a shorter order")
	}
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var order []build.Order
	for n, part := range strings.Split(text, ",") {
		words := strings.Fields(part)
		wrong := func(what string) error {
			return fault.Invalid("order_by", text, fmt.Sprintf("cannot be read at field %d: %s", n+1, what),
				`write it like "project, create_time desc"; the fields are `+join(sortable))
		}
		if len(words) == 0 {
			return nil, wrong("it is empty")
		}
		key := build.Order{Field: build.Field(words[0])}
		switch {
		case !slices.Contains(sortable, key.Field):
			return nil, wrong("builds have no order by this name")
		case slices.ContainsFunc(order, func(o build.Order) bool { return o.Field == key.Field }):
			return nil, wrong("it was named before")
		case len(words) > 2 || len(words) == 2 && words[1] != "asc" && words[1] != "desc":
			return nil, wrong(`only "asc" or "desc" may follow a name`)
		}
		key.Desc = len(words) == 2 && words[1] == "desc"
		order = append(order, key)
	}
	return order, nil
}
