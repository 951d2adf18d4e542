package enforce_test

import (
	"context"
	"errors"
	"testing"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
)

// While the clock is not trusted, no run that removes begins: all would look old.
func TestRun_RefusedWhileTheClockIsNotTrusted(t *testing.T) {
	jumped := errors.New("the clock has jumped")
	e := enforce.New(enforce.Options{Clock: func(context.Context) error { return jumped }})
	_, err := e.Run(t.Context(), enforce.Order{Force: true, All: true}, func(enforce.Event) { t.Error("the run has begun") })
	if !errors.Is(err, jumped) {
		t.Errorf("%v", err)
	}
}
