// Package testkit is what tests of all modules share. It starts real things: a
// process, a collector; it has no fakes of Kiln's or BuildKit's parts.
package testkit

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// VerifyNoLeaks fails the test if, after it and its other cleanups, goroutines
// run that did not run when this was called. Call it first.
func VerifyNoLeaks(t testing.TB) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if !t.Failed() {
			goleak.VerifyNone(t, before)
		}
	})
}

// TempUnixSocket is a path for a unix socket, short enough for the 107 bytes
// that such a path may have. It is removed after the test.
func TempUnixSocket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "kiln") //nolint:usetesting // t.TempDir is too long for a socket's path.
	if err != nil {
		t.Fatalf("making a directory for a socket: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing the directory of a socket: %v", err)
		}
	})
	return filepath.Join(dir, "s.sock")
}

// Eventually waits until cond holds, and fails the test if it does not within
// the time.
func Eventually(t testing.TB, within time.Duration, cond func() bool) {
	t.Helper()
	end := time.Now().Add(within)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if cond() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it did not happen within %s", within)
		}
		<-time.After(pause)
	}
}
