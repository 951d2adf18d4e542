package sqlite_test

import (
	"maps"
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

func TestRemovals_OfDaemonsThatAreGoneMove(t *testing.T) {
	store := closed(t, open(t, filepath.Join(t.TempDir(), "builds.db")))
	for daemon, refs := range map[string][]string{"now": {"a"}, "before": {"a", "b"}, "other": {"c"}, "long ago": {"d"}} {
		for _, ref := range refs {
			if err := store.AddRemoval(t.Context(), daemon, ref); err != nil {
				t.Fatal(err)
			}
		}
	}
	moved, err := store.MoveRemovals(t.Context(), []string{"now", "other"}, "now")
	if want := map[string]int{"before": 2, "long ago": 1}; err != nil || !maps.Equal(moved, want) {
		t.Errorf("moved %v, %v, want %v", moved, err, want)
	}
	for daemon, want := range map[string][]string{"now": {"a", "b", "d"}, "before": nil, "long ago": nil, "other": {"c"}} {
		if got, err := store.Removals(t.Context(), daemon); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", daemon, got, err, want)
		}
	}
}
