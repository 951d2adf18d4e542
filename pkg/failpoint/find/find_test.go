package find_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/pkg/failpoint/find"
)

const header = "package p\n\nimport \"github.com/kilnbuild/kiln/pkg/failpoint\"\n\n"

// tree writes files into a directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestNames(t *testing.T) {
	for name, test := range map[string]struct {
		files map[string]string
		want  string
		err   string
	}{
		"none": {files: map[string]string{"a.go": "package p"}},
		"all kinds": {files: map[string]string{
			"a/a.go":               header + "func f() { failpoint.Hit(\"a.text\"); if true { failpoint.Hit(inOther) } }",
			"a/consts.go":          header + "const (\n\tn = 1\n\tinOther failpoint.Name = \"a.constant\"\n)",
			"b/c/named.go":         strings.Replace(header, "import ", "import fp ", 1) + "var _ = func() { fp.Hit(`c.named`) }",
			"b/c/named_test.go":    header + "func g() { failpoint.Hit(\"a.text\") }",
			"b/testdata/x/x.go":    header + "func g() { failpoint.Hit(\"a.text\") }",
			"b/others.go":          "package p\n\nfunc f(failpoint bat) { failpoint.Hit(\"ball\") }",
			"b/not-go.txt":         "failpoint.Hit(\"x\")",
			"b/other-selectors.go": header + "func f() { ball.Hit(\"x\"); failpoint.Name(\"y\"); Hit(\"z\") }",
		}, want: "a.constant a.text c.named"},
		"computed": {files: map[string]string{
			"a.go": header + "func f() { failpoint.Hit(failpoint.Name(\"a\" + b)) }",
		}, err: "a.go:5:26: the failpoint has no name"},
		"constant of another package": {files: map[string]string{
			"a/a.go": header + "func f() { failpoint.Hit(elsewhere) }",
			"b/b.go": "package q\n\nconst elsewhere = \"e\"",
		}, err: "a.go:5:26: the failpoint has no name"},
		"twice": {files: map[string]string{
			"a.go": header + "func f() { failpoint.Hit(\"a\")\n failpoint.Hit(\"a\") }",
		}, want: "a", err: "a.go:6:16: failpoint a is at "},
		"no Go": {files: map[string]string{"a.go": "package"}, err: "looking for failpoints"},
	} {
		t.Run(name, func(t *testing.T) {
			names, err := find.Names(tree(t, test.files))
			if !slices.Equal(names, strings.Fields(test.want)) {
				t.Errorf("names %q, want %q", names, test.want)
			}
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
	if _, err := find.Names(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a directory that is not there has no failpoints")
	}
}

// What the tests of this repository rely on: the real source is read.
func TestNamesOfTestdata(t *testing.T) {
	names, err := find.Names("../testdata/twice")
	if want := []string{"twice.first", "twice.second"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("names %q, %v, want %q", names, err, want)
	}
}
