package statedir_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/statedir"
)

func TestKey_IsMadeOnceAndPrivate(t *testing.T) {
	dir := t.TempDir()
	key, err := statedir.Key(dir, "pages.key", 32)
	if err != nil || len(key) != 32 || bytes.Equal(key, make([]byte, 32)) {
		t.Fatal(key, err)
	}
	if again, err := statedir.Key(dir, "pages.key", 32); err != nil || !bytes.Equal(again, key) {
		t.Errorf("the second time: %x, %v", again, err)
	}
	if other, err := statedir.Key(dir, "other.key", 32); err != nil || bytes.Equal(other, key) {
		t.Errorf("another key: %x, %v", other, err)
	}
	info, err := os.Stat(filepath.Join(dir, "pages.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestKey_RefusesWhatIsNone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pages.key"), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := statedir.Key(dir, "pages.key", 32); fault.KindOf(err) != fault.FailedPrecondition {
		t.Error(err)
	}
	if _, err := statedir.Key(filepath.Join(dir, "none"), "pages.key", 32); fault.KindOf(err) != fault.FailedPrecondition {
		t.Error(err)
	}
}
