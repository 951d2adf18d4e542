package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/build/storetest"
	"github.com/kilnbuild/kiln/services/builder/internal/sqlite"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T, dir string) build.Store { return open(t, filepath.Join(dir, "builds.db")) })
}

// open opens a store, which the test closes.
func open(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	store, err := sqlite.Open(t.Context(), path)
	if err != nil {
		t.Fatalf("opening %s: %v", path, err)
	}
	return store
}
