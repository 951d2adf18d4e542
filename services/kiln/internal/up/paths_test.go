package up

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// kiln up removes leftovers from its data directory: it must never take a
// directory for its own that is somebody else's.
func TestDataDirectoryOfSomebodyElse(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "tmp", "precious")
	if err := os.MkdirAll(precious, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := makePaths(dir); fault.KindOf(err) != fault.FailedPrecondition {
		t.Errorf("err = %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("something was put there: %v, %v", entries, err)
	}

	own := filepath.Join(t.TempDir(), "new")
	if _, err := makePaths(own); err != nil {
		t.Fatal(err)
	}
	if _, err := makePaths(own); err != nil {
		t.Errorf("its own directory, again: %v", err)
	}
}
