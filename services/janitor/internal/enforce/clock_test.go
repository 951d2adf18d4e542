package enforce_test

import (
	"context"
	"errors"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
)

// While the clock is not trusted, no run that removes begins: all would look old.
func TestRun_RefusedWhileTheClockIsNotTrusted(t *testing.T) {
	jumped := errors.New("the clock has jumped")
	e := enforce.New(enforce.Options{Clock: func(context.Context) error { return jumped }})
	_, err := e.Start(t.Context(), enforce.Order{Force: true, All: true}, trace.SpanContext{})
	if !errors.Is(err, jumped) {
		t.Errorf("%v", err)
	}
}
