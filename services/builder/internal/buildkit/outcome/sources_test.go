package outcome

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// sourceRoots are the modules and directories whose errors end builds. BuildKit's
// own tests, its client's commands and what only Windows compiles are left out.
var sourceRoots = map[string][]string{
	"github.com/moby/buildkit": {
		"cache", "client/llb", "control", "executor", "exporter", "frontend", "session", "solver", "source", "sourcepolicy", "util", "worker",
	},
	"github.com/containerd/platforms":   {"."},
	"github.com/distribution/reference": {"."},
	"github.com/docker/go-units":        {"."},
	"github.com/moby/patternmatcher":    {"."},
	"github.com/tonistiigi/fsutil":      {"."},
}

// skipped are directories below the roots that no build runs.
var skipped = []string{"testutil", "testdata", "/cmd/", "dockerfile2llb/testdata", "errdefs/testdata", "util/windows", "util/winlayers", "util/profiler", "bench"}

// makers are the functions that make errors: for each, where its format stands, and
// whether the text of a cause follows it.
var makers = map[string]struct {
	format int
	wraps  bool
}{
	"errors.New": {}, "errors.Errorf": {}, "fmt.Errorf": {},
	"errors.Wrap": {1, true}, "errors.Wrapf": {1, true}, "errors.WithMessage": {1, true}, "errors.WithMessagef": {1, true},
	"status.Error": {format: 1}, "status.Errorf": {format: 1},
	"cerrdefs.Newf": {},
}

// errorTexts returns the texts of all errors that the sources make.
func errorTexts(t *testing.T) map[errorText]bool {
	t.Helper()
	all := make(map[errorText]bool)
	for module, dirs := range sourceRoots {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
		if err != nil {
			t.Fatalf("go list -m %s: %v", module, err)
		}
		root := string(bytes.TrimSpace(out))
		for _, dir := range dirs {
			err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() || !ours(path[len(root):]) {
					return err
				}
				rel, _ := filepath.Rel(root, filepath.Dir(path))
				return collect(path, filepath.Join(module, rel), all)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

func ours(path string) bool {
	base := filepath.Base(path)
	if !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") || strings.HasSuffix(base, ".pb.go") {
		return false
	}
	for _, os := range []string{"windows", "darwin", "freebsd", "openbsd", "netbsd", "solaris", "nolinux", "unsupported", "nonlinux"} {
		if strings.HasSuffix(base, "_"+os+".go") {
			return false
		}
	}
	return !slices.ContainsFunc(skipped, func(part string) bool { return strings.Contains(path, part) })
}

// collect adds the texts of one file.
func collect(path, dir string, all map[errorText]bool) error {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		called, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		pkg, ok := called.X.(*ast.Ident)
		if !ok {
			return true
		}
		maker, ok := makers[pkg.Name+"."+called.Sel.Name]
		if !ok || len(call.Args) <= maker.format {
			return true
		}
		if text := literal(call.Args[maker.format]); strings.ContainsFunc(text, isLetter) {
			text, cause := strings.CutSuffix(text, ": %w")
			all[errorText{dir: dir, text: text, wraps: maker.wraps || cause}] = true
		}
		return true
	})
	return nil
}

// literal is the text of an expression, with a verb for what is known only when it
// runs.
func literal(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		if err == nil {
			return text
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			return literal(e.X) + literal(e.Y)
		}
	case *ast.CallExpr:
		if called, ok := e.Fun.(*ast.SelectorExpr); ok && called.Sel.Name == "Sprintf" && len(e.Args) > 0 {
			return literal(e.Args[0])
		}
	}
	return "%v"
}

func isLetter(r rune) bool { return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' }
