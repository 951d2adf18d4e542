package wire

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// makeValid replaces what is not UTF-8 in the strings of a message, which could not
// be encoded with it. The messages of this package have no maps.
func makeValid(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
		case field.IsList():
			list := value.List()
			for i := range list.Len() {
				list.Set(i, valid(field, list.Get(i)))
			}
		default:
			m.Set(field, valid(field, value))
		}
		return true
	})
}

func valid(field protoreflect.FieldDescriptor, value protoreflect.Value) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(strings.ToValidUTF8(value.String(), "\uFFFD"))
	case protoreflect.MessageKind:
		makeValid(value.Message())
	}
	return value
}
