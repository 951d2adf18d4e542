package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"buf.build/go/protoyaml"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// source is where a document comes from.
type source struct {
	name    string
	located bool // Line and column mean something to the reader.
}

func (s source) place(node *yaml.Node) string {
	if !s.located {
		return s.name
	}
	return fmt.Sprintf("%s:%d:%d", s.name, node.Line, node.Column)
}

// apply merges a YAML document into the message.
func (l *loader) apply(from source, data []byte) {
	// The decoder takes "\n" only for the end of a line.
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(data))
	root, err := parse(text)
	if err != nil {
		l.problem(from.name, "%v", err)
		return
	}
	if root == nil {
		return // Nothing but comments.
	}
	before := len(l.problems)
	l.prepare(from, root, l.msg.ProtoReflect(), "")
	text = l.humane(from, text, root)
	if len(l.problems) > before {
		return
	}
	err = lifecycle.Protect(context.Background(), func(context.Context) error {
		return protoyaml.UnmarshalOptions{Path: from.name}.Unmarshal([]byte(text), l.msg)
	})
	l.decodeProblems(from, err)
}

// parse reads exactly one document. Nil: it is empty.
func parse(text string) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(strings.NewReader(text))
	var doc yaml.Node
	if err := decoder.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var more yaml.Node
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("it holds more than one YAML document: keep one")
	}
	return doc.Content[0], nil
}

// prepare walks a document before it is decoded. It finds what the decoder
// would let pass, remembers who sets what, and clears what is to be replaced:
// lists, maps, the other members of a oneof, and well-known types.
func (l *loader) prepare(from source, node *yaml.Node, msg protoreflect.Message, path string) {
	if node.Kind != yaml.MappingNode {
		return // For the decoder to complain about, or null.
	}
	seen := map[protoreflect.Name]bool{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		field := fieldOf(msg.Descriptor(), key.Value)
		switch {
		case field == nil:
			// The decoder refuses what is unknown, but takes field numbers.
			if _, err := strconv.Atoi(key.Value); err == nil {
				l.problem(from.place(key), "unknown field %q", key.Value)
			}
		case seen[field.Name()]:
			l.problem(from.place(key), "%s is there twice: keep one", join(path, string(field.Name())))
		default:
			seen[field.Name()] = true
			l.prepareField(from, value, msg, field, join(path, string(field.Name())))
		}
	}
}

func (l *loader) prepareField(from source, node *yaml.Node, msg protoreflect.Message, field protoreflect.FieldDescriptor, path string) {
	l.origins[path] = from.place(node)
	if node.Tag == "!!null" {
		if isSection(field) {
			return // "server:" with nothing below it.
		}
		l.problem(from.place(node), "%s has no value: give it one, or leave it out", path)
		return
	}
	if oneof := field.ContainingOneof(); oneof != nil && !oneof.IsSynthetic() {
		if set := msg.WhichOneof(oneof); set != nil && set != field {
			msg.Clear(set)
		}
	}
	if isSection(field) {
		l.prepare(from, node, msg.Mutable(field).Message(), path)
		return
	}
	msg.Clear(field)
	if !field.IsList() {
		return
	}
	for i, item := range node.Content {
		itemPath := fmt.Sprintf("%s[%d]", path, i)
		l.origins[itemPath] = from.place(item)
		if field.Message() != nil {
			l.prepare(from, item, msg.NewField(field).List().NewElement().Message(), itemPath)
		}
	}
}

// decodeProblems takes the decoder's errors apart: one problem each, without the
// picture of the line.
func (l *loader) decodeProblems(from source, err error) {
	if err == nil {
		return
	}
	if panicked, ok := errors.AsType[*lifecycle.PanicError](err); ok {
		l.problem(from.name, "it cannot be read as YAML: %v", panicked.Value)
		return
	}
	problems := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		problems = joined.Unwrap()
	}
	for _, problem := range problems {
		cause := errors.Unwrap(problem)
		line, _, _ := strings.Cut(problem.Error(), "\n")
		position, _, found := strings.Cut(strings.TrimPrefix(line, from.name), " ")
		switch {
		case cause == nil || !found:
			l.problem(from.name, "%s", line)
		case from.located:
			l.problem(from.name+position, "%v", cause)
		default:
			l.problem(from.name, "%v", cause)
		}
	}
}

// isSection says whether a field holds further settings of its own.
func isSection(field protoreflect.FieldDescriptor) bool {
	return field.Message() != nil && !field.IsList() && !field.IsMap() &&
		field.Message().FullName().Parent() != "google.protobuf"
}

func fieldOf(desc protoreflect.MessageDescriptor, key string) protoreflect.FieldDescriptor {
	if field := desc.Fields().ByName(protoreflect.Name(key)); field != nil {
		return field
	}
	return desc.Fields().ByJSONName(key)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
