package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/moby/buildkit/client"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// throughput is how many unchanged builds a second are done with n callers at once.
type throughput struct{ n int }

func (t throughput) label() string { return fmt.Sprintf("throughput_%d_vs_go_client", t.n) }

// throughputRounds are rounds of both sides in turns, each of some seconds.
const (
	throughputRounds = 5
	throughputBuilds = 96 // a round
)

func (t throughput) run(ctx context.Context, s *stage) ([]row, error) {
	ours, peers, err := inTurns(throughputRounds, func() (float64, error) {
		return t.rate(ctx, s.buildRPC)
	}, func() (float64, error) {
		return t.rate(ctx, s.goClient)
	})
	if err != nil {
		return nil, err
	}
	return []row{{
		Name: t.label(), Unit: "builds/s", Ours: median(ours), Peer: "buildkit Go client, open connection", PeerValue: median(peers),
		Ratio: median(ours) / median(peers), N: throughputRounds, limit: "ratio near 1",
	}}, nil
}

// rate does a round and returns its builds a second.
func (t throughput) rate(ctx context.Context, do work) (float64, error) {
	builds := make(chan struct{}, throughputBuilds)
	for range throughputBuilds {
		builds <- struct{}{}
	}
	close(builds)
	failures := make(chan error, t.n)
	start := time.Now()
	var group sync.WaitGroup
	for range t.n {
		group.Go(func() {
			for range builds {
				if err := do(ctx, false); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	group.Wait()
	took := time.Since(start)
	select {
	case err := <-failures:
		return 0, err
	default:
		return throughputBuilds / took.Seconds(), nil
	}
}

// inTurns measures both sides n times. Which goes first changes each time.
func inTurns(n int, ours, peers func() (float64, error)) (a, b []float64, err error) {
	for round := range n {
		for turn := range 2 {
			side, values := ours, &a
			if (turn+round)%2 == 1 {
				side, values = peers, &b
			}
			value, err := side()
			if err != nil {
				return nil, nil, fmt.Errorf("round %d: %w", round, err)
			}
			*values = append(*values, value)
		}
	}
	return a, b, nil
}

// eventRate is how many events a second reach a caller from a build that writes
// as fast as it can, beside the statuses that BuildKit's own client is given.
type eventRate struct{}

const (
	eventRounds = 3
	eventLines  = 2_000_000 // less is over before it can be timed
)

func (eventRate) label() string { return "log_lines_per_second_vs_go_client" }

func (eventRate) run(ctx context.Context, s *stage) ([]row, error) {
	ours, peers, err := inTurns(eventRounds, func() (float64, error) {
		return lineRate(func(count func([]byte)) error { return s.chattyRPC(ctx, count) })
	}, func() (float64, error) {
		return lineRate(func(count func([]byte)) error { return s.chattyClient(ctx, count) })
	})
	if err != nil {
		return nil, err
	}
	return []row{{
		Name: eventRate{}.label(), Unit: "lines/s", Ours: median(ours), Peer: "buildkit Go client", PeerValue: median(peers),
		Ratio: median(ours) / median(peers), N: eventRounds, limit: "ratio near 1",
	}}, nil
}

// lineRate counts the lines of a build from its first to its last.
func lineRate(build func(count func([]byte)) error) (float64, error) {
	lines := 0
	var first, last time.Time
	err := build(func(data []byte) {
		last = time.Now()
		if first.IsZero() {
			first = last
		}
		for _, b := range data {
			if b == '\n' {
				lines++
			}
		}
	})
	if err == nil && lines != eventLines {
		err = fmt.Errorf("%d lines came, want %d", lines, eventLines)
	}
	return float64(lines) / last.Sub(first).Seconds(), err
}

// chatty is a Dockerfile whose step writes many lines.
func (s *stage) chatty() string {
	return fmt.Sprintf("FROM %s\nENV BUILD=%d\nRUN seq 1 %d\n", s.base, time.Now().UnixNano(), eventLines)
}

func (s *stage) chattyRPC(ctx context.Context, count func([]byte)) error {
	return s.rpcEvents(ctx, inlineSpec(s.chatty()), func(e *builderv1.BuildEvent) { count(e.GetLog().GetData()) })
}

// rpcEvents builds, gives each event to see, and wants success.
func (s *stage) rpcEvents(ctx context.Context, spec *builderv1.BuildSpec, see func(*builderv1.BuildEvent)) error {
	stream, err := s.api.Build(ctx, &builderv1.BuildRequest{Spec: spec})
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	var last *builderv1.Outcome
	for {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w", err)
		}
		see(res.GetEvent())
		last = res.GetEvent().GetOutcome()
	}
	if last.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		return fmt.Errorf("the build ended with %v", last)
	}
	return nil
}

func inlineSpec(dockerfile string) *builderv1.BuildSpec {
	return &builderv1.BuildSpec{
		Project:    "bench",
		Context:    &builderv1.Context{Kind: &builderv1.Context_Inline{Inline: &builderv1.InlineContext{}}},
		Dockerfile: &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Inline{Inline: dockerfile}},
	}
}

func (s *stage) chattyClient(ctx context.Context, count func([]byte)) error {
	return s.clientStatuses(ctx, s.chatty(), func(status *client.SolveStatus) {
		for _, log := range status.Logs {
			count(log.Data)
		}
	})
}

// watchers is how long a build takes that 200 watch, beside one that nobody does.
type watchers struct{}

const (
	watcherRounds = 3
	watcherCount  = 200
)

func (watchers) label() string { return "build_with_200_watchers_vs_none" }

func (watchers) run(ctx context.Context, s *stage) ([]row, error) {
	ours, peers, err := inTurns(watcherRounds, func() (float64, error) {
		return s.watched(ctx, watcherCount)
	}, func() (float64, error) {
		return s.watched(ctx, 0)
	})
	if err != nil {
		return nil, err
	}
	return []row{{
		Name: watchers{}.label(), Unit: "ms", Ours: median(ours), Peer: "the same build, not watched", PeerValue: median(peers),
		Ratio: median(ours) / median(peers), N: watcherRounds, limit: "ratio < 1.1",
	}}, nil
}

// watched builds for some seconds, with a line every few milliseconds, and returns
// how long the build took by its own outcome.
func (s *stage) watched(ctx context.Context, n int) (float64, error) {
	dockerfile := fmt.Sprintf("FROM %s\nENV BUILD=%d\nRUN for i in $(seq 1 500); do echo line $i; usleep 5000; done\n", s.base, time.Now().UnixNano())
	started, err := s.api.StartBuild(ctx, &builderv1.StartBuildRequest{Spec: inlineSpec(dockerfile)})
	if err != nil {
		return 0, fmt.Errorf("%w", err)
	}
	id := started.GetBuild().GetId()
	var group sync.WaitGroup
	failures := make(chan error, n+1)
	for range n {
		group.Go(func() {
			if _, err := s.watch(ctx, id); err != nil {
				failures <- err
			}
		})
	}
	group.Wait()
	outcome, err := s.watch(ctx, id)
	if err != nil {
		return 0, err
	}
	select {
	case err := <-failures:
		return 0, err
	default:
		return float64(outcome.GetTimes().GetTotal().AsDuration()) / float64(time.Millisecond), nil
	}
}

// watch reads a build to its outcome, which must be a success.
func (s *stage) watch(ctx context.Context, id string) (*builderv1.Outcome, error) {
	stream, err := s.api.WatchBuild(ctx, &builderv1.WatchBuildRequest{BuildId: id})
	if err != nil {
		return nil, fmt.Errorf("%w", err)
	}
	var next uint64 = 1
	for {
		res, err := stream.Recv()
		if err != nil {
			return nil, fmt.Errorf("watching: %w", err)
		}
		event := res.GetEvent()
		if event.GetSequence() != next {
			return nil, fmt.Errorf("event %d came where %d was due", event.GetSequence(), next)
		}
		next++
		if outcome := event.GetOutcome(); outcome != nil {
			if outcome.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
				return nil, fmt.Errorf("the build ended with %v", outcome)
			}
			return outcome, nil
		}
	}
}
