package e2e_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// The configuration that is shipped is one that buildkitd takes, with the rules that
// it is meant to have.
func TestS1_ShippedBuildkitdConfig(t *testing.T) {
	l := labtest.New(t)
	config := labtest.Must(filepath.Abs("../deploy/buildkit/buildkitd.toml"))(t)
	d := labtest.Must(l.StartBuildkitd(labtest.Context(t, time.Minute), lab.BuildkitdOptions{Config: config}))(t)
	c := labtest.Must(client.New(labtest.Context(t, time.Minute), d.Addr))(t)
	defer func() { _ = c.Close() }()
	workers := labtest.Must(c.ListWorkers(labtest.Context(t, time.Minute)))(t)
	if len(workers) == 0 {
		t.Fatal("no worker")
	}
	for _, w := range workers {
		for i := range w.GCPolicy {
			if free := w.GCPolicy[i].MinFreeSpace; (free > 0) != (i == 1) {
				t.Errorf("rule %d keeps %d bytes free", i, free)
			}
			w.GCPolicy[i].MinFreeSpace = 0 // is of the size of the disk
		}
		want := []client.PruneInfo{
			{All: true, KeepDuration: 96 * time.Hour},
			{All: true, MaxUsedSpace: 120 << 30},
		}
		if diff := cmp.Diff(want, w.GCPolicy); diff != "" {
			t.Errorf("worker %s: %s", w.ID, diff)
		}
		if got := w.Labels["org.mobyproject.buildkit.worker.snapshotter"]; got != "overlayfs" {
			t.Errorf("snapshotter %q", got)
		}
	}
	// No rights, and Dockerfiles are read by the frontends that it names.
	for want, opt := range map[string]client.SolveOpt{
		"network.host is not allowed":      {AllowedEntitlements: []string{"network.host"}, Frontend: "dockerfile.v0"},
		"is not an allowed gateway source": {Frontend: "gateway.v0", FrontendAttrs: map[string]string{"source": "registry.example.org/frontend:1"}},
	} {
		if _, err := c.Solve(labtest.Context(t, time.Minute), nil, opt, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
