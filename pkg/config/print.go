package config

import (
	"fmt"
	"io"

	"buf.build/go/protoyaml"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// redacted stands in for a text that must not be shown.
const redacted = "REDACTED"

// Print writes the message as YAML that Load reads. Fields with debug_redact are
// redacted: texts say so, all others are left out.
func Print(w io.Writer, msg proto.Message) error {
	shown := proto.Clone(msg)
	redact(shown.ProtoReflect())
	data, err := protoyaml.MarshalOptions{Indent: 2, UseProtoNames: true}.Marshal(shown)
	if err != nil {
		return fmt.Errorf("writing the configuration as YAML: %w", err)
	}
	_, err = w.Write(data)
	return err
}

func redact(msg protoreflect.Message) {
	msg.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case Secret(field):
			hide(msg, field)
		case field.IsMap():
			if field.MapValue().Message() != nil {
				value.Map().Range(func(_ protoreflect.MapKey, item protoreflect.Value) bool {
					redact(item.Message())
					return true
				})
			}
		case field.IsList():
			if field.Message() != nil {
				for i := range value.List().Len() {
					redact(value.List().Get(i).Message())
				}
			}
		case field.Message() != nil:
			redact(value.Message())
		}
		return true
	})
}

func hide(msg protoreflect.Message, field protoreflect.FieldDescriptor) {
	if field.Kind() == protoreflect.StringKind && field.Cardinality() != protoreflect.Repeated {
		msg.Set(field, protoreflect.ValueOfString(redacted))
		return
	}
	msg.Clear(field)
}

// Secret says whether a field is marked with debug_redact, so that its value
// must not be shown.
func Secret(field protoreflect.FieldDescriptor) bool {
	opts, ok := field.Options().(*descriptorpb.FieldOptions)
	return ok && opts.GetDebugRedact()
}
