package filelock_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/pkg/filelock"
)

func TestOneHolderAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := filelock.TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := filelock.TryLock(path); !errors.Is(err, filelock.ErrLocked) {
		t.Errorf("the second holder got %v, want ErrLocked", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := filelock.TryLock(path)
	if err != nil {
		t.Fatalf("after the first holder: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := filelock.TryLock(filepath.Join(t.TempDir(), "no", "lock")); err == nil {
		t.Error("a lock in a directory that does not exist")
	}
}
