package config

import (
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// serviceLink fits what Kubernetes and Docker put in the environment for a
// service of the same name: KILN_BUILDER_PORT_50051_TCP_ADDR, for a service
// "kiln-builder".
var serviceLink = regexp.MustCompile(`^(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_.+)?)$`)

// environ applies the variables that begin with the prefix.
func (l *loader) environ(prefix string, environ []string) {
	if prefix == "" {
		return
	}
	names := map[string]setting{}
	for _, s := range settings(l.msg.ProtoReflect().Descriptor()) {
		names[strings.ToUpper(strings.Join(s.path, "_"))] = s
	}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		short, ours := strings.CutPrefix(name, prefix+"_")
		if !ours {
			continue
		}
		s, known := names[short]
		switch {
		case known:
			l.override(name, s, value)
		case !serviceLink.MatchString(short):
			l.problem(name, "this variable names no setting: correct or unset it (the path server.listen is %s_SERVER_LISTEN)", prefix)
		}
	}
}

// set applies one "path=value".
func (l *loader) set(text string) {
	place := "--set " + text
	path, value, ok := strings.Cut(text, "=")
	if !ok {
		l.problem(place, "write it as path=value")
		return
	}
	for _, s := range settings(l.msg.ProtoReflect().Descriptor()) {
		if strings.Join(s.path, ".") == path {
			l.override("--set "+path, s, value)
			return
		}
	}
	l.problem(place, "there is no setting %q", path)
}

// setting is a field that can be set by name.
type setting struct {
	path  []string
	field protoreflect.FieldDescriptor
}

// settings lists all fields of the message and its sections. Sections
// themselves are not settings.
func settings(desc protoreflect.MessageDescriptor) []setting {
	var found []setting
	var walk func(desc protoreflect.MessageDescriptor, path []string)
	walk = func(desc protoreflect.MessageDescriptor, path []string) {
		for i := range desc.Fields().Len() {
			field := desc.Fields().Get(i)
			here := append(path[:len(path):len(path)], string(field.Name()))
			switch {
			case !isSection(field):
				found = append(found, setting{path: here, field: field})
			case len(here) < 8: // A message that holds itself ends here.
				walk(field.Message(), here)
			}
		}
	}
	walk(desc, nil)
	return found
}

// override applies one value as a document of its own.
func (l *loader) override(place string, s setting, value string) {
	node, err := valueNode(s.field, value)
	if err != nil {
		l.problem(place, "%v", err)
		return
	}
	for i := len(s.path) - 1; i >= 0; i-- {
		node = &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{text(s.path[i]), node}}
	}
	data, err := yaml.Marshal(node)
	if err != nil {
		l.problem(place, "%v", err)
		return
	}
	l.apply(source{name: place}, data)
}

// valueNode reads a value that stands alone: a string as it is; a list as YAML,
// "[a, b]", or with commas, "a,b"; all else as YAML.
func valueNode(field protoreflect.FieldDescriptor, value string) (*yaml.Node, error) {
	plain := field.Message() == nil || field.Message().FullName().Parent() == "google.protobuf"
	flow := strings.HasPrefix(strings.TrimSpace(value), "[")
	switch {
	case field.IsList() && plain && !flow:
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for item := range strings.SplitSeq(value, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list.Content = append(list.Content, text(item))
			}
		}
		return list, nil
	case !field.IsList() && !field.IsMap() && field.Kind() == protoreflect.StringKind:
		return text(value), nil
	}
	node, err := parse(value)
	if err != nil {
		return nil, err
	}
	if node == nil {
		node = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}
	}
	return node, nil
}

func text(value string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value, Style: yaml.DoubleQuotedStyle}
}
