// Package labtest is the lab for tests: it fails the test instead of returning
// an error, shows the logs of the parts when a test fails, and closes with it.
package labtest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
)

// logLines is how much of each log a failing test shows.
const logLines = 40

// New makes a lab that is closed when the test ends.
func New(t testing.TB) *lab.Lab {
	t.Helper()
	l, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.Logs(logLines))
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Context returns a context that ends with the test, and after d in any case.
func Context(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// Must returns a function that fails the test when err is not nil, and else
// returns v: labtest.Must(f())(t).
func Must[V any](v V, err error) func(testing.TB) V {
	return func(t testing.TB) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// Must2 is Must for two values.
func Must2[V, W any](v V, w W, err error) func(testing.TB) (V, W) {
	return func(t testing.TB) (V, W) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v, w
	}
}

// Eventually fails the test when cond does not become true within d.
func Eventually(t testing.TB, d time.Duration, what string, cond func() bool) {
	t.Helper()
	late := time.After(d)
	for !cond() {
		select {
		case <-late:
			t.Fatalf("not within %s: %s", d, what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Write writes the files of a directory, by path relative to it.
func Write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
