// Package config loads the configuration of a service into its message of
// kiln.config.v1: the file, then the environment, then --set, each over the one
// before. The message is the schema: unknown keys are errors, and its
// protovalidate rules check the result.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
)

// maxFileBytes bounds a configuration file: 1 MiB is far beyond any real one.
const maxFileBytes = 1 << 20

// Options says where settings come from.
type Options struct {
	// File is the path of a YAML file. Empty: no file.
	File string
	// EnvPrefix begins the variables that count, such as "KILN_BUILDER"; then
	// KILN_BUILDER_SERVER_LISTEN sets server.listen. Empty: no variable counts.
	EnvPrefix string
	// Environ is the environment, as of os.Environ.
	Environ []string
	// Set holds settings of the form "server.listen=127.0.0.1:50051".
	Set []string
}

// Load fills msg, over what is already there. Lists are replaced, not extended.
// The error names all that is wrong, each with its file, line and column, its
// variable, or its --set.
func Load(msg proto.Message, opts Options) error {
	l := &loader{msg: msg, origins: map[string]string{}}
	if opts.File != "" {
		if err := l.file(opts.File); err != nil {
			return err
		}
	}
	l.environ(opts.EnvPrefix, opts.Environ)
	for _, setting := range opts.Set {
		l.set(setting)
	}
	if len(l.problems) == 0 {
		l.validate()
	}
	return l.err()
}

// loader is one Load under way.
type loader struct {
	msg      proto.Message
	origins  map[string]string // Path of a field to the place that set it.
	problems []string
}

func (l *loader) problem(place, format string, args ...any) {
	l.problems = append(l.problems, place+": "+fmt.Sprintf(format, args...))
}

func (l *loader) err() error {
	if len(l.problems) == 0 {
		return nil
	}
	return errors.New(strings.Join(l.problems, "; "))
}

func (l *loader) file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening the configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if len(data) > maxFileBytes {
		return fmt.Errorf("%s is larger than %d bytes, so it is no configuration", path, maxFileBytes)
	}
	l.apply(source{name: path, located: true}, data)
	return nil
}

// validate checks the rules of the message as it is now.
func (l *loader) validate() {
	err := protovalidate.GlobalValidator.Validate(l.msg)
	if err == nil {
		return
	}
	invalid, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok {
		l.problem("configuration", "%v", err)
		return
	}
	for _, violation := range invalid.Violations {
		path := protovalidate.FieldPathString(violation.Proto.GetField())
		text := violation.Proto.GetMessage()
		if text == "" {
			text = violation.Proto.GetRuleId()
		}
		if origin := l.origin(path); origin != "" {
			l.problem(origin, "%s: %s", path, text)
		} else {
			l.problem(path, "%s", text)
		}
	}
}

// origin is the place that set the field, or the nearest message or list around
// it. Empty: the default.
func (l *loader) origin(path string) string {
	for path != "" {
		if place, ok := l.origins[path]; ok {
			return place
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return ""
}
