package build_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// recorded runs a build that says what say does, and returns what is stored of it.
func recorded(t *testing.T, say func(sink func(any))) (events []build.Event) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &pool{daemon: daemon(func(_ context.Context, sink func(any)) build.Result {
			say(sink)
			return build.Result{}
		})}, newMemory(), 1)
		defer r.stop(t)
		r.Encode = func(e build.Event) ([]byte, error) {
			events = append(events, e)
			return nil, nil
		}
		if err := r.Build(t.Context(), web(), func(build.Frame) error { return nil }); err != nil {
			t.Fatal(err)
		}
	})
	return events
}

func TestEvents_CutLongNames(t *testing.T) {
	name := strings.Repeat("ü", 1<<20)
	for _, e := range recorded(t, func(sink func(any)) {
		sink(build.StepEvent{Name: name, Error: name, ProgressItem: name})
		sink(build.Warning{Message: name, Details: []string{name}})
	}) {
		switch kind := e.Kind.(type) {
		case build.StepEvent:
			if len(kind.Name) > 9<<10 || !strings.HasPrefix(name, strings.TrimSuffix(kind.Name, "…")) || len(kind.Error)+len(kind.ProgressItem) > 18<<10 {
				t.Errorf("a name of %d bytes", len(kind.Name))
			}
		case build.Warning:
			if len(kind.Message) > 9<<10 || len(kind.Details[0]) > 9<<10 {
				t.Errorf("a warning of %d bytes", len(kind.Message))
			}
		}
	}
}

func TestEvents_OfOneBuildAreBounded(t *testing.T) {
	line := make([]byte, 1<<20)
	logs, warnings, outcomes := 0, 0, 0
	for _, e := range recorded(t, func(sink func(any)) {
		for range 400 {
			sink(build.LogEvent{Data: line})
			time.Sleep(time.Second) // until it is stored
		}
	}) {
		switch e.Kind.(type) {
		case build.LogEvent:
			logs++
		case build.Warning:
			warnings++
		case build.Outcome:
			outcomes++
		}
	}
	if logs < 250 || logs > 256 || warnings != 1 || outcomes != 1 {
		t.Errorf("%d lines of a megabyte, %d warnings and %d outcomes", logs, warnings, outcomes)
	}
}
