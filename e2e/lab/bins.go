package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// BinEnv names the variable with a directory whose binaries go before those of
// bin/ in the repository, for example race-built services.
const BinEnv = "KILN_BIN"

// Bin returns the path of a binary that `make tools build` makes, such as
// "buildkitd" or "kiln-builder". A missing one is an error that says so.
func Bin(name string) (string, error) {
	var dirs []string
	if dir := os.Getenv(BinEnv); dir != "" {
		dirs = append(dirs, dir)
	}
	root, err := RepoRoot()
	if err != nil {
		return "", err
	}
	dirs = append(dirs, filepath.Join(root, "bin"))
	for _, dir := range dirs {
		path, err := filepath.Abs(filepath.Join(dir, name))
		if err != nil {
			return "", fmt.Errorf("lab: %w", err)
		}
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("lab: no binary %s in %v: run `make tools build build-failpoints`", name, dirs)
}

// RepoRoot returns the repository's directory: the nearest one with a go.work at
// or above the working directory.
func RepoRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("lab: no go.work above the working directory: run inside the repository")
		}
		dir = parent
	}
}
