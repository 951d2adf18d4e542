package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// forget empties the daemon's own cache, so that only other caches are left.
func (s *stack) forget(t *testing.T) {
	t.Helper()
	labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
		Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{"--addr", s.Buildkitd.Addr, "prune", "--all"},
	}))(t)
}

// Each mode of the cache finds the steps of an earlier build on a daemon that has
// forgotten them, or, where it says so, does not.
func TestFieldCache(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	dir := filepath.Join(s.src, "cache")
	explicit := func(imports, exports *builderv1.CacheEntry) *builderv1.CachePolicy {
		return &builderv1.CachePolicy{
			Mode: builderv1.CacheMode_CACHE_MODE_EXPLICIT, Imports: []*builderv1.CacheEntry{imports}, Exports: []*builderv1.CacheEntry{exports},
		}
	}
	entry := func(kind string, attributes map[string]string) *builderv1.CacheEntry {
		return &builderv1.CacheEntry{Type: kind, Attributes: attributes}
	}
	mode := func(mode builderv1.CacheMode) *builderv1.CachePolicy { return &builderv1.CachePolicy{Mode: mode} }
	own := s.Registry.Addr + "/own-cache:main"
	for name, tc := range map[string]struct {
		policy *builderv1.CachePolicy
		found  bool
	}{
		"local":    {mode(builderv1.CacheMode_CACHE_MODE_LOCAL), false},
		"registry": {mode(builderv1.CacheMode_CACHE_MODE_REGISTRY), true},
		"inline":   {mode(builderv1.CacheMode_CACHE_MODE_INLINE), true},
		"none":     {mode(builderv1.CacheMode_CACHE_MODE_NONE), false},
		"explicit registry": {explicit(entry("registry", map[string]string{"ref": own}),
			entry("registry", map[string]string{"ref": own, "mode": "max"})), true},
		"explicit local": {explicit(entry("local", map[string]string{"src": dir}),
			entry("local", map[string]string{"dest": dir, "mode": "max"})), true},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "explicit local" {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			spec := dockerfile("FROM "+s.base+"\nRUN echo "+unique()+" >/x\n", s.ref("cached-"+strings.ReplaceAll(name, " ", "-")))
			spec.Cache = tc.policy
			s.succeed(t, spec)
			s.forget(t)
			if ran := s.succeed(t, spec).ran(); (len(ran) == 0) != tc.found {
				t.Errorf("%q ran", ran)
			}
			// On the same daemon, all but NONE find what was built.
			if ran := s.succeed(t, spec).ran(); (len(ran) == 0) != (name != "none") {
				t.Errorf("again: %q ran", ran)
			}
		})
	}
	spec := dockerfile("FROM "+s.base+"\nRUN true\n", s.ref("cached"))
	for name, where := range map[string]string{"outside": t.TempDir(), "by ..": s.src + "/../elsewhere"} {
		spec.Cache = explicit(entry("registry", map[string]string{"ref": own}), entry("local", map[string]string{"dest": where}))
		t.Run(name, func(t *testing.T) {
			refused(t, s.build(t, spec).err, codes.PermissionDenied, "DIRECTORY_NOT_ALLOWED", "")
			if left := labtest.Must(filepath.Glob(where + "/*"))(t); len(left) > 0 {
				t.Errorf("it holds %q", left)
			}
		})
	}
}

// Only the stages that are named run again, and those that build on them.
func TestFieldNoCacheStages(t *testing.T) {
	s := sharedStack(t)
	spec := dockerfile("FROM " + s.base + " AS one\nRUN echo 1 " + unique() + " >/one\nFROM " + s.base + " AS two\nRUN echo 2 " + unique() + " >/two\n" +
		"FROM scratch\nCOPY --from=one /one /\nCOPY --from=two /two /\n")
	s.succeed(t, spec)
	spec.NoCacheStages = []string{"two"}
	ran := strings.Join(s.succeed(t, spec).ran(), "\n")
	if !strings.Contains(ran, "echo 2") || strings.Contains(ran, "echo 1") {
		t.Errorf("ran: %s", ran)
	}
}

// The daemon asks the registry again for a base image that has moved.
func TestFieldPull(t *testing.T) {
	s := sharedStack(t)
	ref := s.imageWith(t, "moving", "/f", unique())
	spec := dockerfile("FROM "+ref+"\nCOPY <<END /y\ny\nEND\n", s.ref("pulled"))
	s.succeed(t, spec)
	before := file(t, s.ref("pulled"), "", "/f")
	s.imageWith(t, "moving", "/f", unique())
	spec.Pull = true
	s.succeed(t, spec)
	if after, want := file(t, s.ref("pulled"), "", "/f"), file(t, ref, "", "/f"); after != want || after == before {
		t.Errorf("built on %q, the registry has %q", after, want)
	}
}
