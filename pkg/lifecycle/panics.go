package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
)

// Reporter is called once for each panic that is recovered.
type Reporter func(ctx context.Context, p *PanicError)

type reporterKey struct{}

// WithReporter returns a context whose panics go to report: those that Protect and
// Recovered meet under it.
func WithReporter(ctx context.Context, report Reporter) context.Context {
	return context.WithValue(ctx, reporterKey{}, report)
}

// Protect calls run; a panic becomes a *PanicError, and is reported.
func Protect(ctx context.Context, run func(context.Context) error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = Recovered(ctx, value)
		}
	}()
	return run(ctx)
}

// Go calls run in a goroutine of its own. A panic ends that goroutine only, and is reported.
func Go(ctx context.Context, run func(context.Context)) {
	go func() {
		_ = Protect(ctx, func(ctx context.Context) error { run(ctx); return nil }) // Protect reports it
	}()
}

// Recovered makes an error of what recover returned, and reports it to the reporter
// of ctx. Without a reporter the default logger gets it. Call it in the deferred
// function, so that the stack is that of the panic.
func Recovered(ctx context.Context, value any) *PanicError {
	p := &PanicError{Value: value, Stack: debug.Stack()}
	if report, ok := ctx.Value(reporterKey{}).(Reporter); ok {
		report(ctx, p)
		return p
	}
	p.Log(ctx, slog.Default()) //nolint:forbidigo // without a reporter the panic would be lost
	return p
}

// Recovering reports the panics of an HTTP handler to the reporter of the request's
// context, and cuts the connection. net/http itself only writes a line to its
// ErrorLog.
func Recovering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			value := recover()
			if value == nil {
				return
			}
			if err, ok := value.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				_ = Recovered(r.Context(), value) // the connection is its answer
			}
			panic(http.ErrAbortHandler)
		}()
		next.ServeHTTP(w, r)
	})
}

// PanicError is a panic that was recovered. Its text has the stack, so it belongs
// in logs, not in answers. It unwraps to nothing: a panic with an error is not
// that error.
type PanicError struct {
	// Value is what was thrown.
	Value any
	// Stack is where.
	Stack []byte
}

// Error is the value and the stack.
func (e *PanicError) Error() string {
	return fmt.Sprintf("panic: %v\n%s", e.Value, e.Stack)
}

// Log writes the panic to log, as an error with its value and stack.
func (e *PanicError) Log(ctx context.Context, log *slog.Logger) {
	log.ErrorContext(ctx, "panic recovered", "panic", fmt.Sprint(e.Value), "stack", string(e.Stack))
}
