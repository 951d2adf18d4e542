package builder

import (
	"path/filepath"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/statedir"
)

// state is the builder's own directory, of which it is the only user.
type state struct{ dir string }

func (s state) database() string  { return filepath.Join(s.dir, "builds.db") }
func (s state) contexts() string  { return filepath.Join(s.dir, "contexts") }
func (s state) artifacts() string { return filepath.Join(s.dir, "artifacts") }

// openState makes the directory if need be, and locks it until the stack is closed.
func openState(dir string, undo *lifecycle.Stack) (state, error) {
	dir, err := statedir.Open(dir, "builder", undo)
	return state{dir}, err
}
