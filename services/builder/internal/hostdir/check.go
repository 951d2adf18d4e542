package hostdir

import (
	"fmt"
	"path/filepath"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Check refuses roots that give away more than directories of sources: the host's
// root directory, and what contains, or lies in, the directory state of Kiln's own
// state, however either is spelled. A root that does not exist is checked as it is
// written.
func (r Roots) Check(state string) error {
	state = real(state)
	for _, root := range r {
		switch at := real(root); {
		case at == "/":
			return refuse(root, "leads to the host's root directory: every caller could read every file of this host")
		case contains(at, state):
			return refuse(root, fmt.Sprintf("contains %s, the directory of Kiln's own state, with the builds and tokens of all callers", state))
		case contains(state, at):
			return refuse(root, fmt.Sprintf("lies in %s, the directory of Kiln's own state, with the builds and tokens of all callers", state))
		}
	}
	return nil
}

func refuse(root, why string) error {
	return fault.Invalid("allowed_roots", root, fmt.Sprintf("the allowed root %q %s", root, why),
		"name only directories that hold sources, such as /srv/src")
}

// real returns the path without links and dots, as far as it exists.
func real(path string) string {
	path = filepath.Clean(path)
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	if parent := filepath.Dir(path); parent != path {
		return filepath.Join(real(parent), filepath.Base(path))
	}
	return path
}

func contains(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}
