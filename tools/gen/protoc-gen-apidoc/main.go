// Command protoc-gen-apidoc is a protoc plugin that writes the API reference:
// one Markdown file for each package of contracts, with the services and their
// RPCs, and each message as a table of fields, types, bounds and comments.
package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	protogen.Options{}.Run(func(plugin *protogen.Plugin) error {
		plugin.SupportedFeatures = uint64(pluginpb.CodeGeneratorResponse_FEATURE_PROTO3_OPTIONAL)
		packages := map[protoreflect.FullName][]*protogen.File{}
		for _, file := range plugin.Files {
			if file.Generate {
				name := file.Desc.Package()
				packages[name] = append(packages[name], file)
			}
		}
		for name, files := range packages {
			slices.SortFunc(files, func(a, b *protogen.File) int { return strings.Compare(a.Desc.Path(), b.Desc.Path()) })
			out := plugin.NewGeneratedFile(document(name), "")
			(&page{name: name, out: out}).write(files)
		}
		return nil
	})
}

// document returns the file that describes a package: builder.md for
// kiln.builder.v1. A later version of a package gets its number: builder.v2.md.
func document(name protoreflect.FullName) string {
	version := string(name.Name())
	subject := string(name.Parent().Name())
	if version != "v1" {
		subject += "." + version
	}
	return subject + ".md"
}

// page writes the reference of one package.
type page struct {
	name protoreflect.FullName
	out  *protogen.GeneratedFile
}

func (p *page) write(files []*protogen.File) {
	p.out.P("# ", string(p.name))
	p.out.P()
	p.out.P("Written by `make generate` from `", path.Dir(files[0].Desc.Path()), "`; edit the comments there.")
	p.out.P()
	p.introduction(files)
	for _, file := range files {
		for _, service := range file.Services {
			p.service(service)
		}
	}
	for _, file := range files {
		for _, message := range file.Messages {
			p.message(message)
		}
		for _, enum := range file.Enums {
			p.enum(enum)
		}
	}
}

// introduction is what the files with services say about themselves, or all of
// them in a package without services.
func (p *page) introduction(files []*protogen.File) {
	serving := slices.DeleteFunc(slices.Clone(files), func(file *protogen.File) bool { return len(file.Services) == 0 })
	if len(serving) > 0 {
		files = serving
	}
	for _, file := range files {
		p.paragraphs(string(commentOfFile(file)))
	}
}

// commentOfFile is the comment above the syntax line, which protogen keeps with
// the source locations only.
func commentOfFile(file *protogen.File) protogen.Comments {
	location := file.Desc.SourceLocations().ByPath(protoreflect.SourcePath{12})
	return protogen.Comments(location.LeadingComments)
}

func (p *page) paragraphs(comment string) {
	for _, text := range strings.Split(strings.TrimSpace(comment), "\n\n") {
		if text = oneLine(text); text != "" {
			p.out.P(text)
			p.out.P()
		}
	}
}

func (p *page) service(service *protogen.Service) {
	p.out.P("## Service ", service.GoName)
	p.out.P()
	p.paragraphs(split(service.Comments.Leading))
	for _, method := range service.Methods {
		p.out.P("### ", method.GoName)
		p.out.P()
		p.out.P("`", service.Desc.FullName(), "/", method.GoName, "` (",
			p.stream(method.Desc.IsStreamingClient()), p.link(method.Input.Desc), ") returns (",
			p.stream(method.Desc.IsStreamingServer()), p.link(method.Output.Desc), ")")
		p.out.P()
		p.paragraphs(split(method.Comments.Leading))
	}
}

func (p *page) stream(is bool) string {
	if is {
		return "stream of "
	}
	return ""
}

func (p *page) message(message *protogen.Message) {
	if message.Desc.IsMapEntry() {
		return
	}
	p.heading(message.Desc)
	p.paragraphs(split(message.Comments.Leading))
	if rules := messageRules(message); rules != "" {
		p.out.P("Rules: ", rules)
		p.out.P()
	}
	if len(message.Fields) > 0 {
		p.out.P("| field | type | bounds | meaning |")
		p.out.P("|---|---|---|---|")
	}
	for _, field := range message.Fields {
		p.out.P("| `", field.Desc.Name(), "` | ", p.fieldType(field), " | ", cell(fieldRules(field)), " | ", cell(oneof(field)+oneLine(split(field.Comments.Leading))), " |")
	}
	p.out.P()
	for _, nested := range message.Messages {
		p.message(nested)
	}
	for _, nested := range message.Enums {
		p.enum(nested)
	}
}

func (p *page) enum(enum *protogen.Enum) {
	p.heading(enum.Desc)
	p.paragraphs(split(enum.Comments.Leading))
	p.out.P("| value | number | meaning |")
	p.out.P("|---|---|---|")
	for _, value := range enum.Values {
		p.out.P("| `", value.Desc.Name(), "` | ", int32(value.Desc.Number()), " | ", cell(oneLine(split(value.Comments.Leading))), " |")
	}
	p.out.P()
}

// heading has an explicit anchor: renderers disagree on how to make one.
func (p *page) heading(desc protoreflect.Descriptor) {
	p.out.P(`<a id="`, anchor(desc), `"></a>`)
	p.out.P()
	p.out.P("## ", local(desc))
	p.out.P()
}

func (p *page) fieldType(field *protogen.Field) string {
	desc := field.Desc
	switch {
	case desc.IsMap():
		return fmt.Sprintf("map of %s to %s", p.typeName(desc.MapKey()), p.typeName(desc.MapValue()))
	case desc.IsList():
		return "list of " + p.typeName(desc)
	case desc.HasOptionalKeyword():
		return "optional " + p.typeName(desc)
	}
	return p.typeName(desc)
}

func (p *page) typeName(desc protoreflect.FieldDescriptor) string {
	switch desc.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return p.link(desc.Message())
	case protoreflect.EnumKind:
		return p.link(desc.Enum())
	}
	return desc.Kind().String()
}

// link names a type, as a link if one of our pages describes it.
func (p *page) link(desc protoreflect.Descriptor) string {
	owner := desc.ParentFile().Package()
	if !strings.HasPrefix(string(owner), "kiln.") {
		return "`" + string(desc.FullName()) + "`"
	}
	target := "#" + anchor(desc)
	if owner != p.name {
		target = document(owner) + target
	}
	return "[" + local(desc) + "](" + target + ")"
}

func oneof(field *protogen.Field) string {
	if field.Oneof == nil || field.Oneof.Desc.IsSynthetic() {
		return ""
	}
	return fmt.Sprintf("(one of `%s`) ", field.Oneof.Desc.Name())
}

func anchor(desc protoreflect.Descriptor) string {
	return strings.ToLower(strings.ReplaceAll(local(desc), ".", "-"))
}

// local is a name within its package: Build.Step for kiln.builder.v1.Build.Step.
func local(desc protoreflect.Descriptor) string {
	return strings.TrimPrefix(string(desc.FullName()), string(desc.ParentFile().Package())+".")
}

func split(comments protogen.Comments) string {
	lines := strings.Split(string(comments), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
	}
	return strings.Join(lines, "\n")
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
