package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/attack"
)

// besideAttack is a build of a well-behaved client beside another client that attacks the
// builder, and alone. The attacker is a process of the lowest priority: what it takes of
// the host's processors by itself is not the builder's doing.
type besideAttack struct{ attack.Attack }

const (
	attackRounds = 10
	// attackWithin bounds an attacker.
	attackWithin = time.Minute
)

func besideAttacks() (all []experiment) {
	for _, a := range attack.All {
		all = append(all, besideAttack{a})
	}
	return all
}

func (b besideAttack) label() string { return "build_beside_attack: " + b.Name }

func (b besideAttack) run(ctx context.Context, s *stage) ([]row, error) {
	alone, err := s.buildTimes(ctx, attackRounds)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("%w", err)
	}
	p, err := s.lab.Run(lab.Command{Name: "attacker", Path: "/usr/bin/nice", Args: []string{
		"-n", "19", self, "--attack", b.Name, "--addr", s.builder, "--base", s.base,
	}})
	if err != nil {
		return nil, err
	}
	select { // until it is at it
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
	beside, err := s.buildTimes(ctx, attackRounds)
	if err = errors.Join(err, p.Stop(ctx)); err != nil {
		return nil, err
	}
	return []row{{
		Name: b.label(), Unit: "ms", Ours: median(beside), Peer: "no attack", PeerValue: median(alone), Ratio: median(beside) / median(alone),
		N: attackRounds, P95: quantile(beside, 0.95), PeerP95: quantile(alone, 0.95), limit: "ratio <= 1.5",
	}}, nil
}

// buildTimes builds over and over, and returns how long each build took, in milliseconds.
func (s *stage) buildTimes(ctx context.Context, rounds int) (times []float64, err error) {
	for range rounds {
		start := time.Now()
		if err := s.buildRPC(ctx, false); err != nil {
			return nil, err
		}
		times = append(times, float64(time.Since(start))/float64(time.Millisecond))
	}
	return times, nil
}

// attackAs attacks a builder until it is told to end.
func attackAs(ctx context.Context, name string, on *attack.Target) error {
	ctx, cancel := context.WithTimeout(ctx, attackWithin)
	defer cancel()
	for _, a := range attack.All {
		if a.Name == name {
			return a.Run(ctx, on)
		}
	}
	return fmt.Errorf("no attack is named %q", name)
}
