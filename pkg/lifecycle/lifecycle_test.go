package lifecycle_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/testkit"
)

var errBroken = errors.New("broken")

func untilEnd(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func TestRun(t *testing.T) {
	for name, test := range map[string]struct {
		tasks  []lifecycle.Task
		cancel bool     // End the context from outside.
		want   []string // In the error; none: no error.
	}{
		"no tasks":        {},
		"ended outside":   {cancel: true, tasks: []lifecycle.Task{{Name: "a", Run: untilEnd}, {Name: "b", Run: untilEnd}}},
		"nil at the end":  {cancel: true, tasks: []lifecycle.Task{{Name: "a", Run: func(ctx context.Context) error { <-ctx.Done(); return nil }}}},
		"failure":         {tasks: []lifecycle.Task{{Name: "a", Run: func(context.Context) error { return errBroken }}, {Name: "b", Run: untilEnd}}, want: []string{"a: broken"}},
		"early end":       {tasks: []lifecycle.Task{{Name: "a", Run: func(context.Context) error { return nil }}, {Name: "b", Run: untilEnd}}, want: []string{"a ended unexpectedly"}},
		"panic":           {tasks: []lifecycle.Task{{Name: "a", Run: func(context.Context) error { panic("boom") }}, {Name: "b", Run: untilEnd}}, want: []string{"a: panic: boom", "lifecycle_test.go"}},
		"failure at end":  {cancel: true, tasks: []lifecycle.Task{{Name: "a", Run: func(ctx context.Context) error { <-ctx.Done(); return errBroken }}}, want: []string{"a: broken"}},
		"own cancel":      {tasks: []lifecycle.Task{{Name: "a", Run: func(context.Context) error { return context.Canceled }}}, want: []string{"a: context canceled"}},
		"two failures":    {tasks: []lifecycle.Task{{Name: "a", Run: func(context.Context) error { return errBroken }}, {Name: "b", Run: func(ctx context.Context) error { <-ctx.Done(); return errBroken }}}, want: []string{"a: broken", "b: broken"}},
		"cancelled first": {cancel: true, tasks: []lifecycle.Task{{Name: "a", Run: func(ctx context.Context) error { return ctx.Err() }}}, want: nil},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.VerifyNoLeaks(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.cancel {
				cancel()
			}
			done := make(chan error, 1)
			go func() { done <- lifecycle.Run(ctx, test.tasks...) }()
			select {
			case err := <-done:
				if (err == nil) != (len(test.want) == 0) {
					t.Fatalf("error %v, want %q", err, test.want)
				}
				for _, want := range test.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error %q lacks %q", err, want)
					}
				}
			case <-time.After(10 * time.Second):
				t.Fatal("Run has not ended")
			}
		})
	}
}

func TestRunWaitsForAll(t *testing.T) {
	ended := false
	err := lifecycle.Run(t.Context(),
		lifecycle.Task{Name: "fails", Run: func(context.Context) error { return errBroken }},
		lifecycle.Task{Name: "slow", Run: func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(50 * time.Millisecond)
			ended = true
			return nil
		}})
	if !errors.Is(err, errBroken) || !ended {
		t.Errorf("error %v, slow task ended: %v", err, ended)
	}
}

func TestPanicIsNotTheErrorItThrew(t *testing.T) {
	err := lifecycle.Protect(t.Context(), func(context.Context) error { panic(errBroken) })
	if errors.Is(err, errBroken) {
		t.Error("a panic passes for the error it was thrown with")
	}
	if _, ok := errors.AsType[*lifecycle.PanicError](err); !ok {
		t.Errorf("error is %T", err)
	}
}

func TestStack(t *testing.T) {
	var closed []string
	part := func(name string, err error) (string, func(context.Context) error) {
		return name, func(context.Context) error { closed = append(closed, name); return err }
	}
	var s lifecycle.Stack
	s.Push(part("store", nil))
	s.Push(part("pool", errBroken))
	s.Push("cache", func(context.Context) error { panic("boom") })
	s.Push(part("server", nil))
	err := s.Close(t.Context())
	if diff := cmp.Diff([]string{"server", "pool", "store"}, closed); diff != "" {
		t.Errorf("closed, -want +got:\n%s", diff)
	}
	if !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "closing cache: panic: boom") || !strings.Contains(err.Error(), "closing pool: broken") {
		t.Errorf("error: %v", err)
	}
	if err := s.Close(t.Context()); err != nil || len(closed) != 3 {
		t.Errorf("a second Close closed again: %v %v", err, closed)
	}
	s.Push(part("kept", nil))
	s.Release()
	if err := s.Close(t.Context()); err != nil || len(closed) != 3 {
		t.Errorf("a released part was closed: %v %v", err, closed)
	}
}
