// Package protolimit bounds what an encoded protobuf message becomes in memory,
// before it is decoded. An empty message in a repeated field takes two bytes on the
// wire and a hundred or more once decoded, so a bound on encoded bytes is no bound
// on memory.
package protolimit

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/protocodec"
)

// Limits bounds one message with all messages in it.
type Limits struct {
	Elements int // messages, map entries and items of lists
	Depth    int // levels of messages
}

// Default fits the largest requests that BuildKit's clients send: a graph of 16 MiB
// with about 30 elements for each KiB.
var Default = Limits{Elements: 500_000, Depth: 64}

// packedItems is how many bytes of a packed list count as one element: each byte
// may be an item of eight bytes.
const packedItems = 16

// Unmarshal checks data and decodes it into m, as protocodec does.
func Unmarshal(data []byte, m proto.Message, limits Limits) error {
	if _, err := Check(data, m.ProtoReflect().Descriptor(), limits); err != nil {
		return err
	}
	return protocodec.Unmarshal(data, m)
}

// Check counts the elements of an encoded message of the type desc and returns their
// number. It allocates nothing. The error is a RESOURCE_EXHAUSTED fault when the
// message exceeds the limits; data that is no protobuf is another error.
func Check(data []byte, desc protoreflect.MessageDescriptor, limits Limits) (elements int, err error) {
	c := counter{limits: limits}
	err = c.message(data, desc, 1)
	return c.elements, err
}

type counter struct {
	limits   Limits
	elements int
}

func (c *counter) message(data []byte, desc protoreflect.MessageDescriptor, depth int) error {
	if depth > c.limits.Depth {
		return over(fmt.Sprintf("the message %s nests more than %d levels", desc.FullName(), c.limits.Depth))
	}
	fields := desc.Fields()
	for len(data) > 0 {
		number, wire, n := protowire.ConsumeTag(data)
		if n < 0 {
			return malformed(n)
		}
		data = data[n:]
		n = protowire.ConsumeFieldValue(number, wire, data)
		if n < 0 {
			return malformed(n)
		}
		value := data[:n]
		data = data[n:]
		// Unknown fields are kept as the bytes that they are.
		if field := fields.ByNumber(number); field != nil {
			if err := c.field(field, wire, value, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *counter) field(field protoreflect.FieldDescriptor, wire protowire.Type, value []byte, depth int) error {
	nested := field.Message() != nil
	switch {
	case !nested && !field.IsList():
		return nil
	case !nested && wire == protowire.BytesType && packable(field.Kind()):
		c.elements += len(value) / packedItems
	}
	if c.elements++; c.elements > c.limits.Elements {
		return over(fmt.Sprintf("the message has more than %d elements", c.limits.Elements))
	}
	if !nested || wire != protowire.BytesType {
		return nil
	}
	content, n := protowire.ConsumeBytes(value)
	if n < 0 {
		return malformed(n)
	}
	return c.message(content, field.Message(), depth+1)
}

func packable(kind protoreflect.Kind) bool {
	return kind != protoreflect.StringKind && kind != protoreflect.BytesKind
}

// over returns the error of a message that exceeds a limit.
func over(message string) *fault.Error {
	return fault.New(fault.ResourceExhausted, "LIMIT_REACHED", message, "split the request, or send a smaller one")
}

func malformed(n int) error { return errors.Join(errMalformed, protowire.ParseError(n)) }

var errMalformed = errors.New("malformed protobuf message")
