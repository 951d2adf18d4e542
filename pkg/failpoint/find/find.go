// Package find lists the failpoints of a source tree, so that a test can die at
// each of them and at none that is not there.
package find

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const importPath = "github.com/kilnbuild/kiln/pkg/failpoint"

// Names returns the names of all failpoints in the Go files below a directory,
// sorted. Tests and testdata are left out. A name must stand in the call, or be a
// constant of the same package that does; another one, and one that stands at two
// places, is an error with its position.
func Names(dir string) ([]string, error) {
	packages := map[string][]*ast.File{}
	files := token.NewFileSet()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && entry.Name() == "testdata":
			return fs.SkipDir
		case entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		packages[filepath.Dir(path)] = append(packages[filepath.Dir(path)], file)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("looking for failpoints: %w", err)
	}
	f := finder{files: files, places: map[string]token.Pos{}}
	for _, parsed := range packages {
		f.inPackage(parsed)
	}
	names := make([]string, 0, len(f.places))
	for name := range f.places {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, errors.Join(f.errs...)
}

// finder gathers failpoints.
type finder struct {
	files  *token.FileSet
	places map[string]token.Pos
	errs   []error
}

func (f *finder) inPackage(parsed []*ast.File) {
	constants := map[string]string{}
	for _, file := range parsed {
		for _, decl := range file.Decls {
			if gen, ok := decl.(*ast.GenDecl); ok && gen.Tok == token.CONST {
				addConstants(constants, gen)
			}
		}
	}
	for _, file := range parsed {
		local := importedAs(file)
		if local == "" {
			continue
		}
		ast.Inspect(file, func(node ast.Node) bool {
			if call, ok := node.(*ast.CallExpr); ok && len(call.Args) == 1 && isHit(call.Fun, local) {
				f.add(call.Args[0], constants)
			}
			return true
		})
	}
}

// add adds the failpoint that an argument of Hit names.
func (f *finder) add(arg ast.Expr, constants map[string]string) {
	name, ok := text(arg)
	if ident, isIdent := arg.(*ast.Ident); isIdent {
		name, ok = constants[ident.Name]
	}
	switch former, twice := f.places[name]; {
	case !ok:
		f.errs = append(f.errs, fmt.Errorf("%s: the failpoint has no name that stands in this package", f.files.Position(arg.Pos())))
	case twice:
		f.errs = append(f.errs, fmt.Errorf("%s: failpoint %s is at %s too", f.files.Position(arg.Pos()), name, f.files.Position(former)))
	default:
		f.places[name] = arg.Pos()
	}
}

// addConstants adds the constants of a declaration whose values stand there.
func addConstants(constants map[string]string, decl *ast.GenDecl) {
	for _, spec := range decl.Specs {
		value, ok := spec.(*ast.ValueSpec)
		if !ok {
			continue
		}
		for i, name := range value.Names {
			if i >= len(value.Values) {
				break
			}
			if text, ok := text(value.Values[i]); ok {
				constants[name.Name] = text
			}
		}
	}
}

// text is the value of a string that stands in the source.
func text(expr ast.Expr) (string, bool) {
	literal, ok := expr.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return "", false
	}
	value, err := strconv.Unquote(literal.Value)
	return value, err == nil
}

// importedAs is the name by which a file knows package failpoint, "" when it does
// not.
func importedAs(file *ast.File) string {
	for _, spec := range file.Imports {
		if path, err := strconv.Unquote(spec.Path.Value); err != nil || path != importPath {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return "failpoint"
	}
	return ""
}

func isHit(fun ast.Expr, local string) bool {
	selector, ok := fun.(*ast.SelectorExpr)
	if !ok || selector.Sel.Name != "Hit" {
		return false
	}
	pkg, ok := selector.X.(*ast.Ident)
	return ok && pkg.Name == local
}
