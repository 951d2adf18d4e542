package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
)

// million is a dry run on a very large registry: how much memory it takes, and how long,
// beside a walk of the same files by find. It takes minutes to lay out.
type million struct {
	name     string
	registry lab.BigRegistry
}

func millions() []experiment {
	return []experiment{
		million{"plan_1m_blobs", lab.BigRegistry{Repositories: 1000, Manifests: 83_334, Layers: 10, Tags: 40_000}},
		million{"plan_1m_tags", lab.BigRegistry{Repositories: 1, Manifests: 1000, Layers: 2, Tags: 1_000_000}},
	}
}

func (m million) label() string { return m.name }

// memoryBound is what a plan of a million blobs may take, in MB.
const memoryBound = 400

func (m million) run(ctx context.Context, s *stage) (rows []row, err error) {
	r, err := s.lab.StartRegistry(ctx, lab.RegistryOptions{})
	if err != nil {
		return nil, err
	}
	if err := m.registry.Write(ctx, r.Storage); err != nil {
		return nil, err
	}
	defer func() { // there is no room for the next one beside it; it may take longer than all the rest
		_, rm := lab.Exec(context.WithoutCancel(ctx), lab.Command{Path: "/bin/rm", Args: []string{"-r", filepath.Join(r.Storage, "docker")}})
		err = errors.Join(err, rm)
	}()
	start := time.Now()
	if _, err := lab.Exec(ctx, lab.Command{Path: "/usr/bin/find", Args: []string{r.Storage, "-name", "nothing"}}); err != nil {
		return nil, err
	}
	walk := ms(start)
	took, memory, err := m.dryRun(ctx, s, r)
	if err != nil {
		return nil, err
	}
	return []row{
		{Name: m.name + "_vs_find", Unit: "ms", Ours: took, Peer: "find over the same storage", PeerValue: walk, Ratio: took / walk, N: 1},
		{Name: m.name + "_memory", Unit: "MB", Ours: memory, Peer: "its bound", PeerValue: memoryBound, Ratio: memory / memoryBound, N: 1, limit: "ratio < 1"},
	}, nil
}

// dryRun is how long `kiln-janitor run --once --dry-run` takes, in ms, and the most memory that
// it has, in MB.
func (m million) dryRun(ctx context.Context, s *stage, r *lab.Registry) (took, memory float64, err error) {
	bin, err := lab.Bin("kiln-janitor")
	if err != nil {
		return 0, 0, err
	}
	policy := filepath.Join(s.lab.Dir, "million.yaml")
	if err := os.WriteFile(policy, []byte("rules:\n- {name: untagged, match: {tagging: UNTAGGED}, keep: {age: 1s}}\n"), 0o600); err != nil {
		return 0, 0, err
	}
	state, err := os.MkdirTemp(s.lab.Dir, "state")
	if err != nil {
		return 0, 0, err
	}
	cmd := exec.CommandContext(ctx, bin, "run", "--once", "--dry-run", "--set", "registry.address="+r.Addr, "--set", "registry.storage_root="+r.Storage,
		"--set", "state_dir="+state, "--set", "policy_file="+policy)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	took = ms(start)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %s", err, out)
	}
	fmt.Println(" ", strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "; "))
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		memory = float64(usage.Maxrss) * 1024 / 1e6
	}
	return took, memory, nil
}
