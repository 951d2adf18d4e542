package rpc

import (
	"fmt"
	"strconv"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// unknownField is a field that a message has and its type does not.
type unknownField struct {
	path    string // Of the message that has it; empty at the top.
	number  protowire.Number
	message protoreflect.FullName
}

// findUnknown looks for a field that is not known, anywhere in a message. Nil:
// there is none. Paths are put together only when one is found.
func findUnknown(msg protoreflect.Message) *unknownField {
	if raw := msg.GetUnknown(); len(raw) > 0 {
		number, _, _ := protowire.ConsumeTag(raw)
		return &unknownField{number: number, message: msg.Descriptor().FullName()}
	}
	var found *unknownField
	msg.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			if field.MapValue().Message() != nil {
				found = findInMap(field, value.Map())
			}
		case field.Message() == nil:
		case field.IsList():
			found = findInList(field, value.List())
		default:
			found = findUnknown(value.Message()).below(string(field.Name()))
		}
		return found == nil
	})
	return found
}

func findInList(field protoreflect.FieldDescriptor, list protoreflect.List) *unknownField {
	for i := range list.Len() {
		if found := findUnknown(list.Get(i).Message()); found != nil {
			return found.below(string(field.Name()) + "[" + strconv.Itoa(i) + "]")
		}
	}
	return nil
}

func findInMap(field protoreflect.FieldDescriptor, entries protoreflect.Map) *unknownField {
	var found *unknownField
	entries.Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
		if found = findUnknown(value.Message()); found != nil {
			found = found.below(fmt.Sprintf("%s[%q]", field.Name(), key.String()))
		}
		return found == nil
	})
	return found
}

// below is the field seen from the message that holds its own under a name.
func (u *unknownField) below(name string) *unknownField {
	if u == nil {
		return nil
	}
	if u.path == "" {
		u.path = name
	} else {
		u.path = name + "." + u.path
	}
	return u
}

func (u *unknownField) err() error {
	path := strconv.Itoa(int(u.number))
	if u.path != "" {
		path = u.path + "." + path
	}
	remedy := "remove the field, or call a server of a version that knows it"
	violation := violationOf(path, fmt.Sprintf("%s has no field with number %d on this server", u.message, u.number), "", remedy)
	f := &fault.Error{Kind: fault.InvalidArgument, Reason: "UNKNOWN_FIELD", Remedy: remedy}
	message := fmt.Sprintf("unknown field %q: %s", path, violation.GetDescription())
	return build(f, message, []*errdetails.BadRequest_FieldViolation{violation}).Err()
}
