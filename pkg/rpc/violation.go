package rpc

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/config"
)

// maxShown bounds a value that is quoted, in bytes.
const maxShown = 80

// violationOf puts together what is wrong with a field and what to do.
func violationOf(field, wrong, value, remedy string) *errdetails.BadRequest_FieldViolation {
	text := wrong
	if value != "" {
		text += " (got " + quote(value) + ")"
	}
	if remedy != "" {
		text += ": " + remedy
	}
	return &errdetails.BadRequest_FieldViolation{Field: clip(field, maxText), Description: clip(text, maxText)}
}

// sentence is a violation as the message of a status.
func sentence(v *errdetails.BadRequest_FieldViolation) string {
	return "invalid field " + strconv.Quote(v.GetField()) + ": " + v.GetDescription()
}

// pathOf is the field that a violation is about. Rules over a whole request have
// none; they are about the request.
func pathOf(v *protovalidate.Violation) string {
	if path := protovalidate.FieldPathString(v.Proto.GetField()); path != "" {
		return path
	}
	return "request"
}

// describe says what is wrong, with what was sent where that helps and is not
// secret.
func describe(v *protovalidate.Violation) string {
	text := v.Proto.GetMessage()
	if text == "" {
		text = "breaks the rule " + v.Proto.GetRuleId()
	}
	if strings.HasPrefix(text, "must ") {
		text = subject(v) + " " + text
	}
	if got := shown(v); got != "" {
		text += " (got " + got + ")"
	}
	return text
}

func subject(v *protovalidate.Violation) string {
	switch {
	case v.Proto.GetForKey():
		return "key"
	case ruleIs(v, "string.len", "string.min_len", "string.max_len", "string.len_bytes", "string.min_bytes", "string.max_bytes",
		"bytes.len", "bytes.min_len", "bytes.max_len"):
		return "value length"
	default:
		return "value"
	}
}

func ruleIs(v *protovalidate.Violation, ids ...string) bool {
	for _, id := range ids {
		if v.Proto.GetRuleId() == id {
			return true
		}
	}
	return false
}

// shown is what was sent: a length for rules about lengths, else the value.
// Bytes are never shown, nor what is marked with debug_redact.
func shown(v *protovalidate.Violation) string {
	field, value := v.FieldDescriptor, v.FieldValue
	if field == nil || !value.IsValid() || v.Proto.GetForKey() || config.Secret(field) || ruleIs(v, "required") {
		return ""
	}
	switch held := value.Interface().(type) {
	case string:
		switch {
		case ruleIs(v, "string.len_bytes", "string.min_bytes", "string.max_bytes"):
			return strconv.Itoa(len(held))
		case subject(v) == "value length":
			return strconv.Itoa(utf8.RuneCountInString(held))
		default:
			return quote(held)
		}
	case []byte:
		return strconv.Itoa(len(held)) + " bytes"
	case protoreflect.List:
		return strconv.Itoa(held.Len())
	case protoreflect.Map:
		return strconv.Itoa(held.Len())
	case protoreflect.Message:
		if d, ok := held.Interface().(*durationpb.Duration); ok {
			return d.AsDuration().String()
		}
		return ""
	default:
		return fmt.Sprint(held)
	}
}

// remedies says what to do about a violation, by the end of the rule's name.
var remedies = []struct{ rule, remedy string }{
	{"required", "set this field"},
	{".min_items", "send more items"},
	{".max_items", "send fewer items"},
	{".unique", "send each item once"},
	{".min_pairs", "send more entries"},
	{".max_pairs", "send fewer entries"},
	{".min_len", "send a longer value"},
	{".min_bytes", "send a longer value"},
	{".max_len", "send a shorter value"},
	{".max_bytes", "send a shorter value"},
	{".defined_only", "use a value that the contract defines"},
	{".in", "use one of the values in the list"},
	{".not_in", "use another value"},
	{".lt", "send a smaller value"},
	{".lte", "send a smaller value"},
	{".gt", "send a larger value"},
	{".gte", "send a larger value"},
}

// remedyOf says what to do. Where the rule alone does not tell, the comment on
// the field in the contract does.
func remedyOf(v *protovalidate.Violation) string {
	rule := v.Proto.GetRuleId()
	for _, r := range remedies {
		if strings.HasSuffix(rule, r.rule) {
			return r.remedy
		}
	}
	if v.FieldDescriptor != nil {
		return "see " + string(v.FieldDescriptor.FullName()) + " in the API reference for what is allowed"
	}
	return "see the request in the API reference for what is allowed"
}

func quote(text string) string { return strconv.Quote(clip(text, maxShown)) }

// clip shortens a text to a number of bytes, at the border of a character.
func clip(text string, most int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most] + "…"
}
