package sqlite_test

import (
	"path/filepath"
	"slices"
	"testing"
)

func TestRemovals_StayUntilTheyAreDropped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "builds.db")
	store := open(t, path)
	for _, ref := range []string{"b", "a", "a"} {
		if err := store.AddRemoval(t.Context(), "d1", ref); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.AddRemoval(t.Context(), "d2", "c"); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	store = closed(t, open(t, path))
	if got, err := store.Removals(t.Context(), "d1"); err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%q, %v", got, err)
	}
	if err := store.DropRemoval(t.Context(), "d1", "a"); err != nil {
		t.Fatal(err)
	}
	if got, err := store.Removals(t.Context(), "d1"); err != nil || !slices.Equal(got, []string{"b"}) {
		t.Errorf("after one is dropped: %q, %v", got, err)
	}
}
