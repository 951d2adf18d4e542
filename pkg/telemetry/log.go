package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"go.opentelemetry.io/otel/trace"
)

func newLogger(opts Options) (*slog.Logger, error) {
	out := opts.LogWriter
	if out == nil {
		out = os.Stderr
	}
	var level slog.Level
	if opts.LogLevel != "" {
		if err := level.UnmarshalText([]byte(opts.LogLevel)); err != nil {
			return nil, fmt.Errorf("log.level %q is not known: use debug, info, warn or error", opts.LogLevel)
		}
	}
	handlerOpts := &slog.HandlerOptions{Level: level, ReplaceAttr: readable}
	format := opts.LogFormat
	if format == "" {
		format = "json"
		if isTerminal(out) {
			format = "text"
		}
	}
	var handler slog.Handler
	switch format {
	case "text":
		handler = slog.NewTextHandler(out, handlerOpts)
	case "json":
		handler = slog.NewJSONHandler(out, handlerOpts)
	default:
		return nil, fmt.Errorf("log.format %q is not known: use text or json", format)
	}
	return slog.New(traceHandler{handler}).With("service", opts.Service), nil
}

// readable writes a duration as "1.5s", where slog's JSON would be bare
// nanoseconds, and an error as its text, where slog's text would print the stack
// that some libraries put into their errors.
func readable(_ []string, attr slog.Attr) slog.Attr {
	switch value := attr.Value.Any().(type) {
	case time.Duration:
		attr.Value = slog.StringValue(value.String())
	case error:
		attr.Value = slog.StringValue(value.Error())
	}
	return attr
}

func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// traceHandler adds the ids of the span in the context to each record.
type traceHandler struct{ slog.Handler }

func (h traceHandler) Handle(ctx context.Context, record slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		record = record.Clone()
		record.AddAttrs(slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	return h.Handler.Handle(ctx, record)
}

func (h traceHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return traceHandler{h.Handler.WithAttrs(attrs)}
}

func (h traceHandler) WithGroup(name string) slog.Handler {
	return traceHandler{h.Handler.WithGroup(name)}
}
