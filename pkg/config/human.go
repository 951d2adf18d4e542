package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	units "github.com/docker/go-units"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// What people write in place of what the decoder reads: sizes like "100GB" (10^9
// each) and "100GiB" (2^30) in fields whose name ends in "bytes", days like "7d" in
// durations, and the names of an enum without the prefix that all of them have.
var (
	size = regexp.MustCompile(`^[0-9]+(\.[0-9]+)? ?([kKMGTP]i?)?B$`)
	days = regexp.MustCompile(`^[0-9]{1,6}d$`)
)

// edit replaces a value in the text of a document.
type edit struct {
	node *yaml.Node
	with string
}

// humane returns the text with values as the decoder reads them. Lines stay where
// they are.
func (l *loader) humane(from source, text string, root *yaml.Node) string {
	var edits []edit
	eachScalar(root, l.msg.ProtoReflect().Descriptor(), func(node *yaml.Node, field protoreflect.FieldDescriptor) {
		l.findEdit(from, node, field, &edits)
	})
	return replaced(text, edits)
}

// replaced returns the text with the values of its document replaced.
func replaced(text string, edits []edit) string {
	lines := strings.Split(text, "\n")
	for _, e := range slices.Backward(edits) { // later ones first: they move nothing before them
		line, at := lines[e.node.Line-1], e.node.Column-1
		if rest := line[min(at, len(line)):]; strings.Contains(rest, e.node.Value) {
			at += strings.Index(rest, e.node.Value) // after a quote
			lines[e.node.Line-1] = line[:at] + e.with + line[at+len(e.node.Value):]
		}
	}
	return strings.Join(lines, "\n")
}

// eachScalar calls do for each value of a document that is not a mapping or a list, with its field.
func eachScalar(node *yaml.Node, desc protoreflect.MessageDescriptor, do func(*yaml.Node, protoreflect.FieldDescriptor)) {
	if node.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		field, value := fieldOf(desc, node.Content[i].Value), node.Content[i+1]
		if field == nil || field.IsMap() {
			continue
		}
		values := []*yaml.Node{value}
		if field.IsList() {
			values = value.Content
		}
		for _, v := range values {
			switch {
			case v.Kind == yaml.ScalarNode:
				do(v, field)
			case field.Message() != nil:
				eachScalar(v, field.Message(), do)
			}
		}
	}
}

func (l *loader) findEdit(from source, node *yaml.Node, field protoreflect.FieldDescriptor, edits *[]edit) {
	switch name := string(field.Name()); {
	case field.Kind() == protoreflect.EnumKind:
		if long := longName(field.Enum(), node.Value); long != "" {
			*edits = append(*edits, edit{node, long})
		}
	case field.Message() != nil && field.Message().FullName() == "google.protobuf.Duration":
		if days.MatchString(node.Value) {
			n, _ := strconv.Atoi(strings.TrimSuffix(node.Value, "d")) // six digits
			*edits = append(*edits, edit{node, (time.Duration(n) * 24 * time.Hour).String()})
		}
	case isInteger(field) && (name == "bytes" || strings.HasSuffix(name, "_bytes")):
		if _, err := strconv.ParseInt(node.Value, 10, 64); err == nil || node.Tag == "!!int" {
			return
		}
		bytes, ok := bytesOf(node.Value)
		if !ok {
			l.problem(from.place(node), "%q is not a size: write it in bytes, or like 100GB (10^9 each) or 100GiB (2^30)", node.Value)
			return
		}
		*edits = append(*edits, edit{node, strconv.FormatInt(bytes, 10)})
	}
}

func isInteger(field protoreflect.FieldDescriptor) bool {
	return field.Kind() == protoreflect.Int64Kind || field.Kind() == protoreflect.Uint64Kind
}

// ParseSize reads a size as configurations have it: bytes, "100GB" (10^9 each) or
// "100GiB" (2^30).
func ParseSize(text string) (int64, error) {
	if bytes, err := strconv.ParseInt(text, 10, 64); err == nil && bytes >= 0 {
		return bytes, nil
	}
	bytes, ok := bytesOf(text)
	if !ok {
		return 0, fmt.Errorf("%q is not a size: write it in bytes, or like 100GB (10^9 each) or 100GiB (2^30)", text)
	}
	return bytes, nil
}

func bytesOf(text string) (int64, bool) {
	if !size.MatchString(text) {
		return 0, false
	}
	parse := units.FromHumanSize
	if strings.HasSuffix(text, "iB") {
		parse = units.RAMInBytes
	}
	bytes, err := parse(text)
	return bytes, err == nil && bytes >= 0
}

// longName is the whole name of an enum's value; "" when it is whole, or there is
// none.
func longName(enum protoreflect.EnumDescriptor, text string) string {
	values := enum.Values()
	prefix, ok := strings.CutSuffix(string(values.Get(0).Name()), "UNSPECIFIED")
	if !ok || values.ByName(protoreflect.Name(text)) != nil {
		return ""
	}
	long := prefix + strings.ToUpper(text)
	if values.ByName(protoreflect.Name(long)) == nil {
		return ""
	}
	return long
}

// Document is a text that was read into a message.
type Document struct{ origins map[string]string }

// Place is where a field was set, as "name:line:column", or the nearest message or
// list around it; "" when nothing set it.
func (d Document) Place(path string) string {
	l := loader{origins: d.origins}
	return l.origin(path)
}

// Explain says of a fault in a field of the document where in its text that is; the fault is
// then of the field that the text came in. Others stay as they are.
func (d Document) Explain(err error, field string) error {
	wrong, ok := errors.AsType[*fault.Error](err)
	if !ok || wrong.Kind != fault.InvalidArgument {
		return err
	}
	at := d.Place(wrong.Field)
	if at == "" {
		return err
	}
	out := *wrong
	out.Message = at + ": " + wrong.Field + ": " + wrong.Message
	out.Field = field
	return &out
}

// Decode reads a YAML document into msg, and checks its rules, as Load does with a
// file. The name stands for the document in errors.
func Decode(name, text string, msg proto.Message) (Document, error) {
	l := &loader{msg: msg, origins: map[string]string{}}
	if len(text) > maxFileBytes {
		return Document{}, fmt.Errorf("%s is larger than %d bytes", name, maxFileBytes)
	}
	l.apply(source{name: name, located: true}, []byte(text))
	if len(l.problems) == 0 {
		l.validate()
	}
	return Document{l.origins}, l.err()
}
