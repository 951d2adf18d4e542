package main

import (
	"fmt"
	"strings"
	"time"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// phrases say the frequent rules in words; a rule that is not here is shown by
// its name, so that none is lost.
var phrases = map[protoreflect.Name]string{
	"const": "is %s", "lt": "< %s", "lte": "≤ %s", "gt": "> %s", "gte": "≥ %s",
	"min_len": "at least %s characters", "max_len": "at most %s characters", "len": "%s characters",
	"min_bytes": "at least %s bytes", "max_bytes": "at most %s bytes",
	"min_items": "at least %s items", "max_items": "at most %s items", "unique": "no item twice",
	"min_pairs": "at least %s pairs", "max_pairs": "at most %s pairs",
	"pattern": "matches `%s`", "prefix": "begins with `%s`", "suffix": "ends with `%s`", "contains": "contains `%s`",
	"in": "one of %s", "not_in": "none of %s", "defined_only": "a value listed here", "required": "required",
	"uri": "a URI", "host_and_port": "host:port", "uuid": "a UUID",
	"items": "each item: %s", "keys": "each key: %s", "values": "each value: %s",
}

// fieldRules says in words what buf.validate demands of a field.
func fieldRules(field *protogen.Field) string {
	rules, _ := proto.GetExtension(field.Desc.Options(), validate.E_Field).(*validate.FieldRules)
	return describe(rules.ProtoReflect())
}

// messageRules says in words what buf.validate demands of a message as a whole.
func messageRules(message *protogen.Message) string {
	rules, _ := proto.GetExtension(message.Desc.Options(), validate.E_Message).(*validate.MessageRules)
	var said []string
	for _, rule := range rules.GetCel() {
		said = append(said, rule.GetMessage())
	}
	for _, oneof := range rules.GetOneof() {
		quantity := "at most"
		if oneof.GetRequired() {
			quantity = "exactly"
		}
		said = append(said, fmt.Sprintf("%s one of `%s`", quantity, strings.Join(oneof.GetFields(), "`, `")))
	}
	for _, oneof := range message.Oneofs {
		rules, _ := proto.GetExtension(oneof.Desc.Options(), validate.E_Oneof).(*validate.OneofRules)
		if rules.GetRequired() {
			said = append(said, fmt.Sprintf("one of `%s` is required", oneof.Desc.Name()))
		}
	}
	return strings.Join(said, "; ")
}

// describe walks a message of rules in the order of its descriptor.
func describe(rules protoreflect.Message) string {
	var said []string
	fields := rules.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if !rules.Has(field) || field.Name() == "ignore" {
			continue
		}
		if text := describeRule(field, rules.Get(field)); text != "" {
			said = append(said, text)
		}
	}
	return strings.Join(said, ", ")
}

func describeRule(field protoreflect.FieldDescriptor, value protoreflect.Value) string {
	if field.Name() == "cel" {
		var said []string
		for i := range value.List().Len() {
			rule, _ := value.List().Get(i).Message().Interface().(*validate.Rule)
			said = append(said, rule.GetMessage())
		}
		return strings.Join(said, ", ")
	}
	phrase, known := phrases[field.Name()]
	if !known {
		// The rules of a type (string, repeated, …) are one level down.
		if field.Kind() == protoreflect.MessageKind && !field.IsList() {
			return describe(value.Message())
		}
		phrase = strings.ReplaceAll(string(field.Name()), "_", " ") + " %s"
	}
	if !strings.Contains(phrase, "%s") {
		return phrase
	}
	return fmt.Sprintf(phrase, literal(field, value))
}

func literal(field protoreflect.FieldDescriptor, value protoreflect.Value) string {
	if field.IsList() {
		var items []string
		for i := range value.List().Len() {
			items = append(items, scalar(value.List().Get(i)))
		}
		return strings.Join(items, ", ")
	}
	if field.Kind() == protoreflect.StringKind {
		return value.String()
	}
	return scalar(value)
}

func scalar(value protoreflect.Value) string {
	switch v := value.Interface().(type) {
	case string:
		return fmt.Sprintf("%q", v)
	case protoreflect.Message:
		switch m := v.Interface().(type) {
		case *durationpb.Duration:
			return duration(m.AsDuration())
		case *timestamppb.Timestamp:
			return m.AsTime().Format(time.RFC3339)
		}
		return describe(v)
	}
	return value.String()
}

// duration writes whole days and hours short: 24h rather than 24h0m0s.
func duration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
