package hostdir_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/hostdir"
)

func TestCheck_RefusesRootsThatGiveTheHostAway(t *testing.T) {
	base := t.TempDir()
	state := filepath.Join(base, "lib/kiln/builder")
	for _, dir := range []string{state + "/contexts", filepath.Join(base, "src")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	link(t, "/", filepath.Join(base, "slash"))
	link(t, "slash", filepath.Join(base, "slash-twice"))
	link(t, filepath.Join(base, "lib"), filepath.Join(base, "other-name"))
	for name, root := range map[string]string{
		"the root directory":           "/",
		"the root directory, twice":    "//",
		"the root directory by dots":   "/tmp/../..",
		"above the root directory":     "/..",
		"a link to the root directory": filepath.Join(base, "slash"),
		"a link to such a link":        filepath.Join(base, "slash-twice"),
		"the process's root directory": "/proc/self/root",
		"what contains the state":      filepath.Join(base, "lib"),
		"a link to what contains it":   filepath.Join(base, "other-name"),
		"the state":                    state,
		"what lies in the state":       filepath.Join(state, "contexts"),
		"what will lie in the state":   filepath.Join(state, "none/yet"),
	} {
		if err := (hostdir.Roots{filepath.Join(base, "src"), root}).Check(state); fault.KindOf(err) != fault.InvalidArgument {
			t.Errorf("%s (%s): %v", name, root, err)
		}
	}
	good := hostdir.Roots{filepath.Join(base, "src"), filepath.Join(base, "none"), filepath.Join(base, "lib/kiln-other")}
	if err := good.Check(state); err != nil {
		t.Error(err)
	}
}

func TestOpen_RefusesARootThatBecameTheRootDirectory(t *testing.T) {
	root := filepath.Join(t.TempDir(), "src")
	link(t, "/", root)
	if dir, err := (hostdir.Roots{root}).Open("/etc"); err == nil {
		dir.Close()
		t.Error("it opened /etc")
	}
	if dir, err := (hostdir.Roots{root}).Create(root + "/tmp"); err == nil {
		dir.Close()
		t.Error("it opened /tmp for writing")
	}
}
