package statedir_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/statedir"
)

func TestOneAtATime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	var undo lifecycle.Stack
	got, err := statedir.Open(dir, "builder", &undo)
	if err != nil || got != dir {
		t.Fatal(got, err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Error(info.Mode(), err)
	}
	_, err = statedir.Open(dir, "builder", &lifecycle.Stack{})
	if fault.KindOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "another builder") {
		t.Error(err)
	}
	if err := undo.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	var again lifecycle.Stack
	if _, err := statedir.Open(dir, "builder", &again); err != nil {
		t.Error(err)
	}
	if err := again.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := statedir.Open(filepath.Join(file, "x"), "builder", &lifecycle.Stack{}); fault.KindOf(err) != fault.FailedPrecondition {
		t.Error(err)
	}
}
