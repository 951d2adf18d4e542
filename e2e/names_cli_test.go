package e2e_test

import (
	"path/filepath"
	"strings"
	"testing"
)

// Directories whose names hold a newline, or letters that are not ASCII, build in
// every place where one is named, and nothing but errors is told beside the progress.
func TestNames_WithANewlineBuild(t *testing.T) {
	s := sharedStack(t)
	root := s.dir(t, map[string]string{
		"con\ntext/sub\ndir/file": "x", "con\ntext/Dockerfile": "FROM scratch\nCOPY . /\n", "con\ntext/docker\nfile/Dockerfile": "FROM scratch\nCOPY . /\n",
		"out\nside/Dockerfile": "FROM scratch\nCOPY . /\n", "named/Dockerfile": "FROM scratch\nCOPY --from=more . /\n",
	})
	context := filepath.Join(root, "con\ntext")
	for name, args := range map[string][]string{
		"context":           {context},
		"Dockerfile inside": {"-f", filepath.Join(context, "docker\nfile", "Dockerfile"), context},
		"three arguments":   {context, filepath.Join(root, "out\nside"), "web:1"},
		"named context":     {"--build-context", "more=" + context, "-f", filepath.Join(root, "named", "Dockerfile"), filepath.Join(root, "named")},
		"detached":          {"--detach", "-t", "web:1", context},
		"detached, Dockerfile inside": {
			"--detach", "-t", "web:1", "-f", filepath.Join(context, "docker\nfile", "Dockerfile"), context,
		},
		"cache":  {"-t", "web:1", "--cache-to", "type=local,dest=" + filepath.Join(root, "ca\nché"), "--cache-from", "type=local,src=" + filepath.Join(root, "ca\nché"), context},
		"output": {"-o", filepath.Join(t.TempDir(), "o\nut"), context},
	} {
		if out, err := s.kiln(t, append([]string{"build", "--progress", "none"}, args...)...); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out.Stderr)
		} else if strings.Contains(out.Stderr, "level=") {
			t.Errorf("%s: %s", name, out.Stderr)
		}
	}
}
