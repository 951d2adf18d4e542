package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Stack collects what must be closed, in the order in which it was opened. A
// constructor pushes each part it makes, closes the stack when a later part
// fails, and releases it when all is well. The zero value is ready to use.
type Stack struct {
	mu    sync.Mutex
	parts []Task
}

// Push adds a part. Name appears in errors.
func (s *Stack) Push(name string, closePart func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts = append(s.parts, Task{Name: name, Run: closePart})
}

// Close closes all parts, the last one first, also when one fails or panics. It
// returns what failed. A second Close does nothing. The parts bound themselves
// by ctx.
func (s *Stack) Close(ctx context.Context) error {
	parts := s.take()
	var failures []error
	for i := len(parts) - 1; i >= 0; i-- {
		if err := Protect(ctx, parts[i].Run); err != nil {
			failures = append(failures, fmt.Errorf("closing %s: %w", parts[i].Name, err))
		}
	}
	return errors.Join(failures...)
}

// Release forgets all parts without closing them: somebody else does now.
func (s *Stack) Release() { s.take() }

func (s *Stack) take() []Task {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := s.parts
	s.parts = nil
	return parts
}
