package config

import (
	"fmt"
	"io"
	"strings"
	"time"

	"buf.build/go/protoyaml"
	"go.yaml.in/yaml/v3"
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
	_, err = io.WriteString(w, withSpans(string(data), msg.ProtoReflect().Descriptor()))
	return err
}

// withSpans writes the durations of a document as people do: 48h in place of 172800s.
func withSpans(text string, desc protoreflect.MessageDescriptor) string {
	var doc yaml.Node
	if yaml.Unmarshal([]byte(text), &doc) != nil || len(doc.Content) == 0 {
		return text
	}
	var edits []edit
	eachScalar(doc.Content[0], desc, func(node *yaml.Node, field protoreflect.FieldDescriptor) {
		if field.Message() == nil || field.Message().FullName() != "google.protobuf.Duration" {
			return
		}
		if d, err := time.ParseDuration(node.Value); err == nil {
			edits = append(edits, edit{node, spanText(d)})
		}
	})
	return replaced(text, edits)
}

// spanText is a duration without units that are zero: "48h", "1h30m", "0s".
func spanText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
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
