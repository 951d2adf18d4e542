package e2e_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const ours = "github.com/kilnbuild/kiln/"

// heavy are the module paths that only an adapter may bring in.
var heavy = []string{
	"github.com/moby/buildkit",
	"github.com/google/go-containerregistry",
	"github.com/distribution/distribution",
	"github.com/containerd/containerd",
}

// TestLayering holds the import graph to docs/architecture.md: not only what a
// file imports, which the linter sees, but all that comes with it.
func TestLayering(t *testing.T) {
	services := func(except string) []string {
		var others []string
		for _, name := range []string{"builder", "cachemanager", "janitor", "kiln"} {
			if name != except {
				others = append(others, ours+"services/"+name)
			}
		}
		return others
	}
	tests := []struct {
		module string
		denied []string
	}{
		{"proto", append([]string{ours + "pkg", ours + "services"}, heavy...)},
		{"pkg", append([]string{ours + "services"}, heavy...)},
		{"pkg/buildkitd", []string{ours + "services", "github.com/google/go-containerregistry", "github.com/distribution/distribution"}},
		{"examples/go-client", append([]string{ours + "pkg", ours + "services"}, heavy...)},
		{"services/builder", services("builder")},
		{"services/cachemanager", services("cachemanager")},
		{"services/janitor", services("janitor")},
	}
	for _, test := range tests {
		t.Run(test.module, func(t *testing.T) {
			for _, line := range imports(t, test.module) {
				pkg, deps := line[0], line[1:]
				if dep := denied(deps, test.denied); dep != "" {
					t.Errorf("%s depends on %s", pkg, dep)
				}
			}
		})
	}
}

// TestDomainIsClean proves that no package of a service's domain brings in gRPC,
// the contract it serves, or a vendor's client, directly or through another.
func TestDomainIsClean(t *testing.T) {
	forbidden := append([]string{
		"google.golang.org/grpc",
		ours + "proto/gen/go/kiln/builder",
		ours + "proto/gen/go/kiln/cachemanager",
		ours + "proto/gen/go/kiln/janitor",
	}, heavy...)
	// What stands between the domain and the world.
	adapters := []string{"grpcapi", "wire", "state", "rawcodec", "buildkit", "registry", "storage", "driver"}
	for _, service := range []string{"builder", "cachemanager", "janitor"} {
		prefix := ours + "services/" + service + "/internal/"
		for _, line := range imports(t, "services/"+service) {
			pkg, deps := line[0], line[1:]
			layer, inside := strings.CutPrefix(pkg, prefix)
			layer, _, _ = strings.Cut(layer, "/")
			if !inside || slices.Contains(adapters, layer) {
				continue
			}
			if dep := denied(deps, forbidden); dep != "" {
				t.Errorf("%s, of the domain, depends on %s", pkg, dep)
			}
		}
	}
}

// TestDependenciesAreExplained holds docs/dependencies.md to its promise.
func TestDependenciesAreExplained(t *testing.T) {
	reasons, err := os.ReadFile("../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	modules := []string{"proto", "pkg", "pkg/buildkitd", "services/builder", "services/cachemanager", "services/janitor", "services/kiln", "examples/go-client", "e2e", "tools/gen"}
	for _, module := range modules {
		text, err := os.ReadFile(filepath.Join("..", module, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			direct := len(fields) == 2 && strings.HasPrefix(fields[1], "v")
			if direct && !strings.HasPrefix(fields[0], ours) && !strings.Contains(string(reasons), "`"+fields[0]+"`") {
				t.Errorf("docs/dependencies.md does not say why %s requires %s", module, fields[0])
			}
		}
	}
}

// imports lists the packages of a module, each followed by all it depends on.
func imports(t *testing.T, module string) [][]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "list", "-f", `{{.ImportPath}} {{join .Deps " "}}`, "./...")
	cmd.Dir = filepath.Join("..", module)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list in %s: %v\n%s", module, err, stderr(err))
	}
	var lines [][]string
	for line := range strings.Lines(string(out)) {
		lines = append(lines, strings.Fields(line))
	}
	if len(lines) == 0 {
		t.Fatalf("%s has no packages", module)
	}
	return lines
}

func stderr(err error) []byte {
	if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // Output returns it unwrapped
		return exit.Stderr
	}
	return nil
}

// denied returns the first dependency that is, or is below, one of the prefixes.
func denied(deps, prefixes []string) string {
	for _, dep := range deps {
		if slices.ContainsFunc(prefixes, func(prefix string) bool { return dep == prefix || strings.HasPrefix(dep, prefix+"/") }) {
			return dep
		}
	}
	return ""
}
