package scopes_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kilnbuild/kiln/services/builder/internal/scopes"
)

func open(t *testing.T, dir string) *scopes.Book {
	t.Helper()
	b, err := scopes.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBook_ReturnsTheMostRecentOthers(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	for i := range 12 {
		if err := b.Wrote("r/web", fmt.Sprint("s", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Wrote("r/web", "s8"); err != nil {
		t.Fatal(err)
	}
	want := []string{"s8", "s10", "s9", "s7"}
	if got := b.Others("r/web", "s11"); !slices.Equal(got, want) {
		t.Errorf("others %v, want %v", got, want)
	}
	if got := b.Others("r/other", "s1"); len(got) > 0 {
		t.Errorf("another repository has %v", got)
	}
	// Its file has what is new, not each use.
	if got := open(t, dir).Others("r/web", ""); !slices.Equal(got, []string{"s11", "s10", "s9", "s8"}) {
		t.Errorf("after a restart: %v", got)
	}
}

func TestOpen_StartsAnewWhenTheFileIsBroken(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cache-scopes.json"), []byte(`{"cut`), 0o600); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir)
	if err := b.Wrote("r", "s"); err != nil || !slices.Equal(open(t, dir).Others("r", ""), []string{"s"}) {
		t.Errorf("not written anew: %v", err)
	}
}
