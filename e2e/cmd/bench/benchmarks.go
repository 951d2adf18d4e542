package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// experiment measures something beside a peer.
type experiment interface {
	label() string
	run(ctx context.Context, s *stage) ([]row, error)
}

// experiments are all there are, in their order.
func experiments() []experiment {
	var all []experiment
	for _, b := range benchmarks {
		all = append(all, b)
	}
	for _, n := range []int{1, 4, 16, 64} {
		all = append(all, throughput{n})
	}
	all = append(all, baking{targets: 300, rounds: 1})
	all = append(all, eventRate{}, watchers{}, upload{}, transfer{}, transfer{output: true}, idleClients{}, pruning{}, pruning{onDisk: true}, sweeping{})
	all = append(all, besideAttacks()...)
	return append(all, millions()...)
}

// benchmark is the same work done by Kiln and by a peer, in turns.
type benchmark struct {
	name, peer string
	rounds     int
	push       bool
	// added: the difference is the point, not the ratio.
	added bool
	limit string
	// ours and peers choose the two sides.
	ours, peers func(*stage) work
}

// work is done once per round. push: the image goes to a registry, too.
type work func(ctx context.Context, push bool) error

// benchmarks measure single builds. In each, nothing has changed since
// the build before: all is cached, and what is measured is the way there and back.
var benchmarks = []benchmark{
	{
		name: "unchanged_build_vs_go_client", peer: "buildkit Go client, open connection", rounds: 60,
		limit: "ratio <= 1.2", ours: buildRPC, peers: goClient,
	},
	{
		name: "unchanged_build_push_vs_go_client", peer: "buildkit Go client, open connection", rounds: 60, push: true,
		limit: "ratio <= 1.2", ours: buildRPC, peers: goClient,
	},
	{
		name: "unchanged_build_vs_buildctl", peer: "buildctl", rounds: 40,
		limit: "ratio < 1", ours: buildRPC, peers: directBuildctl,
	},
	{
		name: "unchanged_build_push_vs_buildctl", peer: "buildctl", rounds: 40, push: true,
		limit: "ratio < 1", ours: buildRPC, peers: directBuildctl,
	},
	{
		name: "unchanged_build_vs_buildx", peer: "docker buildx", rounds: 40,
		limit: "ratio < 1", ours: buildRPC, peers: buildx,
	},
	{
		name: "gateway_added_vs_direct_buildctl", peer: "buildctl without the gateway", rounds: 60, added: true,
		limit: "added < 5 ms", ours: gatewayBuildctl, peers: directBuildctl,
	},
	{
		name: "gateway_added_push_vs_direct_buildctl", peer: "buildctl without the gateway", rounds: 40, push: true, added: true,
		limit: "added < 5 ms", ours: gatewayBuildctl, peers: directBuildctl,
	},
}

func buildRPC(s *stage) work        { return s.buildRPC }
func goClient(s *stage) work        { return s.goClient }
func buildx(s *stage) work          { return s.buildx }
func directBuildctl(s *stage) work  { return s.buildctlTo(s.daemon) }
func gatewayBuildctl(s *stage) work { return s.buildctlTo(s.builder) }

// warmups are rounds that are not measured: they fill caches and open connections.
const warmups = 3

func (b benchmark) label() string { return b.name }

func (b benchmark) run(ctx context.Context, s *stage) ([]row, error) {
	r, err := s.measure(ctx, b)
	return []row{r}, err
}

// measure runs the rounds and returns the medians in milliseconds. Which side goes
// first changes from round to round, so that neither always follows the other.
func (s *stage) measure(ctx context.Context, b benchmark) (row, error) {
	sides := []work{b.ours(s), b.peers(s)}
	times := make([][]float64, len(sides))
	for round := range b.rounds + warmups {
		for turn := range sides {
			side := (turn + round) % len(sides)
			start := time.Now()
			if err := sides[side](ctx, b.push); err != nil {
				return row{}, fmt.Errorf("round %d: %w", round, err)
			}
			if round >= warmups {
				times[side] = append(times[side], float64(time.Since(start))/float64(time.Millisecond))
			}
		}
	}
	ours, peers := median(times[0]), median(times[1])
	r := row{Name: b.name, Unit: "ms", Ours: ours, Peer: b.peer, PeerValue: peers, Ratio: ours / peers, N: b.rounds, limit: b.limit,
		P95: quantile(times[0], 0.95), PeerP95: quantile(times[1], 0.95)}
	if b.added {
		added := ours - peers
		r.AddedMS = &added
	}
	return r, nil
}

func quantile(values []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
