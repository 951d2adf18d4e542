package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
)

// baking is one `buildx bake` of many targets, through the gateway and on the daemon.
type baking struct{ targets, rounds int }

func (b baking) label() string { return fmt.Sprintf("bake_%d_vs_direct", b.targets) }

func (b baking) run(ctx context.Context, s *stage) ([]row, error) {
	if err := s.createGatewayBuildx(ctx); err != nil {
		return nil, err
	}
	sides := []string{"gateway", "bench"}
	times := make([][]float64, len(sides))
	for round := range b.rounds + 1 {
		dir, err := s.writeBake(b.targets)
		if err != nil {
			return nil, err
		}
		for turn := range sides {
			side := (turn + round) % len(sides)
			start := time.Now()
			if _, err := lab.Exec(ctx, s.buildxCommand("bake", "--allow=fs=*", "--builder", sides[side], "--progress", "quiet",
				"-f", filepath.Join(dir, "docker-bake.hcl"))); err != nil {
				return nil, fmt.Errorf("round %d, %s: %w", round, sides[side], err)
			}
			if round > 0 { // the first one warms up
				times[side] = append(times[side], float64(time.Since(start))/float64(time.Millisecond))
			}
		}
	}
	ours, peers := median(times[0]), median(times[1])
	return []row{{Name: b.label(), Unit: "ms", Ours: ours, Peer: "buildx bake without the gateway", PeerValue: peers,
		Ratio: ours / peers, N: b.rounds, limit: "ratio <= 1.2"}}, nil
}

// createGatewayBuildx tells buildx of the builder.
func (s *stage) createGatewayBuildx(ctx context.Context) error {
	_, err := lab.Exec(ctx, s.buildxCommand("create", "--name", "gateway", "--driver", "remote", s.builder))
	return err
}

// writeBake writes a bake of so many targets, each a build of its own whose files are
// copied anew.
func (s *stage) writeBake(targets int) (dir string, err error) {
	if dir, err = os.MkdirTemp(s.lab.Dir, "bake-"); err != nil {
		return "", fmt.Errorf("%w", err)
	}
	var file, group strings.Builder
	for i := range targets {
		fmt.Fprintf(&group, "%q,", fmt.Sprint("t", i))
		fmt.Fprintf(&file, "target \"t%d\" {\n  context = %q\n  dockerfile-inline = \"FROM scratch\\nCOPY data /t%d\\n\"\n  output = [\"type=cacheonly\"]\n}\n", i, dir, i)
	}
	fmt.Fprintf(&file, "group \"default\" { targets = [%s] }\n", group.String())
	for name, text := range map[string]string{"docker-bake.hcl": file.String(), "data": dir} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("%w", err)
		}
	}
	return dir, nil
}
