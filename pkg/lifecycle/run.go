// Package lifecycle runs the parts of a program together and takes them down in
// order.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Task is one part of a program.
type Task struct {
	// Name appears in errors.
	Name string
	// Run does the work until ctx ends, and returns soon after that.
	Run func(ctx context.Context) error
}

// Run runs all tasks at once and waits for all of them. The first that fails,
// panics, or returns while ctx is still live cancels the others; that failure
// is returned, with those that followed it. When ctx ends, Run returns nil,
// unless a task failed for another reason than the end of ctx.
func Run(ctx context.Context, tasks ...Task) error {
	group, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		mu       sync.Mutex
		failures []error
		wait     sync.WaitGroup
	)
	for _, task := range tasks {
		wait.Go(func() {
			err := outcome(group, task)
			if err == nil {
				return
			}
			mu.Lock()
			failures = append(failures, err)
			mu.Unlock()
			cancel()
		})
	}
	wait.Wait()
	return errors.Join(failures...)
}

// outcome runs a task and says whether its end is a failure.
func outcome(ctx context.Context, task Task) error {
	err := Protect(ctx, task.Run)
	switch {
	case err == nil && ctx.Err() == nil:
		return fmt.Errorf("%s ended unexpectedly", task.Name)
	case err == nil:
		return nil
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return nil // The end that was asked for.
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return nil
	default:
		return fmt.Errorf("%s: %w", task.Name, err)
	}
}
