package builder

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// unprotected are the functions that start goroutines without a recovery, and why that is
// right.
var unprotected = map[string]string{
	"internal/build/ending.go:watchDaemon":    "reads the builder's own state",
	"internal/build/service.go:wait":          "waits",
	"internal/guard/proxy.go:ServeProxy":      "closes the server",
	"internal/buildkit/solve.go:solve":        "drains a channel",
	"internal/buildkit/relay/link.go:Open":    "serves a gRPC server, whose calls are protected",
	"internal/buildkit/relay/link.go:end":     "closes the link",
	"internal/buildkit/relay/relay.go:Accept": "asks for health",
	"internal/buildkit/relay/relay.go:end":    "closes the connection",
}

// A panic in a goroutine that nothing recovers ends the builder and with it everybody's
// builds. So each goroutine is started by lifecycle.Go, or calls lifecycle.Protect, or is
// listed with the reason.
func TestGoroutines_RecoverPanics(t *testing.T) {
	files := token.NewFileSet()
	used := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "storetest") {
			return err
		}
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			where := filepath.ToSlash(path) + ":" + f.Name.Name
			ast.Inspect(f, func(n ast.Node) bool {
				start, ok := n.(*ast.GoStmt)
				if !ok || protects(start) {
					return true
				}
				if _, listed := unprotected[where]; listed {
					used[where] = true
					return true
				}
				t.Errorf("%s: %s starts a goroutine whose panic ends the builder: use lifecycle.Go", files.Position(start.Pos()), f.Name.Name)
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for where := range unprotected {
		if !used[where] {
			t.Errorf("%s is listed and starts no goroutine without recovery", where)
		}
	}
}

// protects reports whether a goroutine calls lifecycle.Protect.
func protects(start *ast.GoStmt) (yes bool) {
	ast.Inspect(start, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Protect" {
			yes = true
		}
		return true
	})
	return yes
}
