package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/moby/buildkit/session/secrets/secretsprovider"

	"github.com/kilnbuild/kiln/e2e/lab"
)

// transfer is 1 GiB that goes through a client's session, as a context to the daemon or
// as an output to the client: through the gateway, and directly.
type transfer struct{ output bool }

const transferRounds = 5

func (t transfer) label() string {
	if t.output {
		return "gateway_output_1gib_vs_direct"
	}
	return "gateway_context_1gib_vs_direct"
}

func (t transfer) run(ctx context.Context, s *stage) ([]row, error) {
	dir := filepath.Join(s.lab.Dir, t.label())
	prepare := func(int) error { return writeBig(dir, s.base) }
	do := s.sync
	if t.output {
		if err := s.writeProducer(dir); err != nil {
			return nil, err
		}
		if err := s.export(ctx, s.daemon, dir); err != nil { // makes what is exported
			return nil, err
		}
		prepare, do = func(int) error { return nil }, s.export
	}
	rates := make([][]float64, 2)
	for round := range transferRounds {
		if err := prepare(round); err != nil {
			return nil, err
		}
		for turn := range rates {
			side := (turn + round) % len(rates)
			start := time.Now()
			if err := do(ctx, []string{s.builder, s.daemon}[side], dir); err != nil {
				return nil, fmt.Errorf("round %d: %w", round, err)
			}
			rates[side] = append(rates[side], uploadMiB/time.Since(start).Seconds())
		}
	}
	ours, direct := median(rates[0]), median(rates[1])
	return []row{{
		Name: t.label(), Unit: "MiB/s", Ours: ours, Peer: "buildctl without the gateway", PeerValue: direct, Ratio: ours / direct,
		N: transferRounds, limit: "ratio >= 0.9",
	}}, os.RemoveAll(dir)
}

// writeProducer writes a Dockerfile whose result has 1 GiB that does not compress.
func (s *stage) writeProducer(dir string) error {
	text := "FROM " + s.base + " AS made\nRUN mkdir /out && for i in $(seq 64); do dd if=/dev/urandom of=/out/$i bs=1M count=16 2>/dev/null; done\n" +
		"FROM scratch\nCOPY --from=made /out /\n"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("%w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
}

// export has buildctl write the result of a build to a directory.
func (s *stage) export(ctx context.Context, addr, dir string) error {
	dest := filepath.Join(s.lab.Dir, "exported")
	_, err := lab.Exec(ctx, lab.Command{Path: s.buildctl, Args: []string{
		"--addr", addr, "build", "--progress", "quiet", "--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + dir,
		"--output", "type=local,dest=" + dest,
	}})
	return errors.Join(err, os.RemoveAll(dest))
}

// idleClients is what the builder holds for a client that has a connection and an
// open session, and asks for nothing.
type idleClients struct{}

const idle = 500

func (idleClients) label() string { return "idle_client_memory" }

func (i idleClients) run(ctx context.Context, s *stage) ([]row, error) {
	before, err := residentMemory(s.builderPID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	failed := make(chan error, idle)
	for range idle {
		clients.Go(func() { failed <- s.idleClient(ctx) })
	}
	select { // until all are open, and what they left behind is collected
	case err := <-failed:
		return nil, fmt.Errorf("a session has ended: %w", err)
	case <-time.After(15 * time.Second):
	}
	after, err := residentMemory(s.builderPID)
	if err != nil {
		return nil, err
	}
	each := (after - before) / idle
	const bound = 200
	return []row{{
		Name: i.label(), Unit: "KiB", Ours: each, Peer: "the bound", PeerValue: bound, Ratio: each / bound, N: idle, limit: "<= 200 KiB",
	}}, nil
}

// idleClient opens a connection and a session, until ctx ends.
func (s *stage) idleClient(ctx context.Context) error {
	conn, err := lab.Dial(s.builder)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is left to lose
	open, err := session.NewSession(ctx, "")
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	open.Allow(secretsprovider.FromMap(nil))
	return open.Run(ctx, grpchijack.Dialer(controlapi.NewControlClient(conn))) //nolint:wrapcheck // no more is known
}

// residentMemory is what a process has resident, in KiB.
func residentMemory(pid int) (float64, error) { return memoryOf(pid, "VmRSS:") }

// memoryOf reads a line of a process's status, in KiB.
func memoryOf(pid int, name string) (float64, error) {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, fmt.Errorf("%w", err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strconv.ParseFloat(strings.Fields(rest)[0], 64)
		}
	}
	return 0, fmt.Errorf("no %s in %s", name, status)
}
