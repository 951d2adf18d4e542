// Package aip reads what callers write to choose and order the things of a list:
// filters (https://google.aip.dev/160) and orders (https://google.aip.dev/132).
package aip

// Field is the name of a field that a filter or an order may name.
type Field string

// Kind is what the values of a field are.
type Kind int

// The kinds.
const (
	Text   Kind = iota // a string; all comparisons, and ":" for a prefix
	Enum               // one of a few values; "=" and "!="
	Time               // a time.Time, written as RFC 3339 has it; all but ":"
	Number             // an int64; all but ":"
	Span               // a time.Duration, written like "48h"; all but ":"
	Flag               // a bool; "=" and "!="
)

// Of says what a field is.
type Of struct {
	Field Field
	Kind  Kind
	// Values are those of an Enum by their names, in capitals; Prefix may stand before
	// them, as in the contract.
	Values map[string]any
	Prefix string
	// Names are those of Values, in the order in which they are told.
	Names []string
	// Sorts is whether an order may name the field.
	Sorts bool
}

// Schema is the fields of the things of a list.
type Schema struct {
	Things  string // what they are called, such as "builds"
	Example string // of a filter, for errors
	Fields  []Of
}

func (s Schema) of(name Field) (Of, bool) {
	for _, of := range s.Fields {
		if of.Field == name {
			return of, true
		}
	}
	return Of{}, false
}

// Order is one key of an order. What has no value for the field comes first, or last
// with Desc.
type Order struct {
	Field Field
	Desc  bool
}

// Filter is a condition: one of And, Or, Not and Compare.
type Filter interface{ filter() }

// And fits when all do.
type And []Filter

// Or fits when one does.
type Or []Filter

// Not fits when its one does not.
type Not struct{ Of Filter }

// Compare fits when the field stands to the value as Op says. "!=" fits when "="
// does not, and nothing else fits what has no value for the field. Of several values
// one must fit.
type Compare struct {
	Field Field
	Op    Op
	Value any // as the kind of the field says
}

// Op is how a field is compared.
type Op string

// The comparisons. HasPrefix is for strings: the field begins with the value.
const (
	Equal          Op = "="
	NotEqual       Op = "!="
	Less           Op = "<"
	LessOrEqual    Op = "<="
	Greater        Op = ">"
	GreaterOrEqual Op = ">="
	HasPrefix      Op = ":"
)

func (And) filter()     {}
func (Or) filter()      {}
func (Not) filter()     {}
func (Compare) filter() {}
