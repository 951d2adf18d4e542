package gateway_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// bakeStack is a builder with so many slots.
func bakeStack(t *testing.T, slots uint32) *lab.Stack {
	t.Helper()
	return labtest.Must(labtest.New(t).StartStack(labtest.Context(t, 2*time.Minute), lab.StackOptions{
		Builder: &configv1.BuilderConfig{MaxRunningBuilds: slots, Admission: &configv1.AdmissionConfig{MaxQueued: 2000}},
	}))(t)
}

// bakeFile writes a bake of so many targets, each a build of its own. Linked targets
// take another one as their base.
func bakeFile(t *testing.T, targets int, linked bool) (dir string) {
	t.Helper()
	dir = t.TempDir()
	var file, group strings.Builder
	for i := range targets {
		from, contexts := "scratch", ""
		if linked && i > 0 {
			from, contexts = "parent", fmt.Sprintf("  contexts = { parent = \"target:t%d\" }\n", (i-1)/2)
		}
		fmt.Fprintf(&group, "%q,", fmt.Sprint("t", i))
		fmt.Fprintf(&file, "target \"t%d\" {\n  dockerfile-inline = \"FROM %s\\nCOPY data /t%d\\n\"\n  output = [\"type=cacheonly\"]\n%s}\n", i, from, i, contexts)
	}
	fmt.Fprintf(&file, "group \"default\" { targets = [%s] }\n", group.String())
	for name, text := range map[string]string{"docker-bake.hcl": file.String(), "data": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// bake runs buildx bake against an address.
func bake(t *testing.T, addr, dir string, within time.Duration, args ...string) lab.Output {
	t.Helper()
	config := t.TempDir()
	command := func(args ...string) lab.Command {
		return lab.Command{
			Name: "buildx", Path: labtest.Must(lab.Bin("buildx"))(t), Args: args, Dir: dir,
			Env: []string{"BUILDX_CONFIG=" + config, "DOCKER_CONFIG=" + config},
		}
	}
	labtest.Must(lab.Exec(labtest.Context(t, time.Minute), command("create", "--name", "kiln", "--driver", "remote", addr)))(t)
	return labtest.Must(lab.Exec(labtest.Context(t, within), command(append([]string{
		"bake", "--builder", "kiln", "--progress", "plain", "-f", filepath.Join(dir, "docker-bake.hcl"),
	}, args...)...)))(t)
}

// More targets than slots, and more calls than a connection used to have streams:
// every target of a bake is built.
func TestBake_OfManyTargetsEnds(t *testing.T) {
	for _, test := range []struct {
		targets int
		slots   uint32
	}{{300, 2}, {300, 64}, {1000, 4}} {
		t.Run(fmt.Sprintf("%d targets with %d slots", test.targets, test.slots), func(t *testing.T) {
			s := bakeStack(t, test.slots)
			start := time.Now()
			bake(t, "tcp://"+s.Builder.Addr, bakeFile(t, test.targets, false), 8*time.Minute)
			t.Logf("took %s", time.Since(start).Round(time.Second))
		})
	}
}

// Targets that wait in the client for others, because they need their results or are
// exported after all are built, give their slots back meanwhile.
func TestBake_WithFewerSlotsThanTargetsThatWaitForOneAnother(t *testing.T) {
	for name, test := range map[string]struct {
		linked bool
		args   []string
	}{
		"linked":                {true, nil},
		"outputs deferred":      {false, []string{"--jobs", "defer-output"}},
		"linked, outputs later": {true, []string{"--jobs", "defer-output"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := bakeStack(t, 2)
			bake(t, "tcp://"+s.Builder.Addr, bakeFile(t, 12, test.linked), 2*time.Minute, test.args...)
		})
	}
}
