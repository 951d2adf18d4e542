package aip

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// maxOrderLength is in bytes.
const maxOrderLength = 256

// Order reads an order: names of fields with commas between, each followed
// by "desc", "asc" or nothing; nil when text is blank. Its error is an
// INVALID_ARGUMENT fault that says what is wrong and where.
func (s Schema) Order(text string) ([]Order, error) {
	if len(text) > maxOrderLength {
		return nil, fault.Invalid("order_by", "", fmt.Sprintf("is %d bytes long, more than %d", len(text), maxOrderLength), "write a shorter order")
	}
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	sortable := s.names(true)
	var order []Order
	for n, part := range strings.Split(text, ",") {
		words := strings.Fields(part)
		wrong := func(what string) error {
			return fault.Invalid("order_by", text, fmt.Sprintf("cannot be read at field %d: %s", n+1, what),
				`write it like "`+string(sortable[0])+` desc", with commas between several; the fields are `+join(sortable))
		}
		if len(words) == 0 {
			return nil, wrong("it is empty")
		}
		key := Order{Field: Field(words[0])}
		switch {
		case !slices.Contains(sortable, key.Field):
			return nil, wrong(s.Things + " have no order by this name")
		case slices.ContainsFunc(order, func(o Order) bool { return o.Field == key.Field }):
			return nil, wrong("it was named before")
		case len(words) > 2 || len(words) == 2 && words[1] != "asc" && words[1] != "desc":
			return nil, wrong(`only "asc" or "desc" may follow a name`)
		}
		key.Desc = len(words) == 2 && words[1] == "desc"
		order = append(order, key)
	}
	return order, nil
}
