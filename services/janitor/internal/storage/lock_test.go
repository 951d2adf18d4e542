package storage_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/storage"
)

// One holder at a time; what it leaves says that the lock is free, and what another host has
// written meanwhile stays.
func TestLock(t *testing.T) {
	s := storage.New(t.TempDir())
	file := filepath.Join(s.Root(), "kiln-janitor", "lock")
	_, unlock, err := s.Lock(t.Context(), "first")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Lock(t.Context(), "second")
	if busy, ok := errors.AsType[*fault.Error](err); !ok || busy.Kind != fault.AlreadyExists || busy.Metadata["run_id"] != "first" {
		t.Errorf("the second: %v", err)
	}
	unlock()
	if left, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(left)) != "" {
		t.Errorf("let go: %q, %v", left, err)
	}
	if _, unlock, err = s.Lock(t.Context(), "third"); err != nil {
		t.Fatal(err)
	}
	const other = `{"id":"another","boot":"another","host":"another","run":"its","beat":7}`
	if err := os.WriteFile(file, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	unlock()
	if left, err := os.ReadFile(file); err != nil || string(left) != other {
		t.Errorf("another host's: %q, %v", left, err)
	}
}
