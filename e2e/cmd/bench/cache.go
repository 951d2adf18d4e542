package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// pruning is what the cache manager does with a large cache: planning, and freeing
// half of it, beside BuildKit's own prune by size of another daemon with the same
// cache; and how long builds wait meanwhile. Each record costs BuildKit some commits of
// its databases: with the daemons' state in memory the work is measured, and on a disk
// mostly how fast that writes.
type pruning struct{ onDisk bool }

const (
	pruneRounds  = 5
	cacheRecords = 2000
)

func (p pruning) label() string { return p.name("free_1000") }

func (p pruning) name(of string) string {
	if p.onDisk {
		of += "_on_disk"
	}
	return of + "_vs_buildkit_prune"
}

// state is where the daemons have theirs: a directory that goes at the end, or "" for
// that of the lab.
func (p pruning) state(s *stage) (string, error) {
	if p.onDisk {
		return "", nil
	}
	dir, err := os.MkdirTemp("/dev/shm", "kiln-bench-")
	if err == nil {
		s.lab.OnClose(dir, func(context.Context) error { return os.RemoveAll(dir) })
	}
	return dir, err
}

// side is a daemon with a cache to be pruned, and the way that is done.
type side struct {
	bk     *client.Client
	prune  func(ctx context.Context, keep int64) error
	took   []float64 // ms
	pauses []float64 // ms
}

func (p pruning) run(ctx context.Context, s *stage) ([]row, error) {
	ours, err := s.cached(ctx, p)
	if err != nil {
		return nil, err
	}
	peer, err := s.cached(ctx, p)
	if err != nil {
		return nil, err
	}
	api, err := s.startCacheManager(ctx, ours.addr)
	if err != nil {
		return nil, err
	}
	sides := []*side{{bk: ours.bk, prune: func(ctx context.Context, keep int64) error { return pruneByRPC(ctx, api, keep) }}, {bk: peer.bk}}
	sides[1].prune = func(ctx context.Context, keep int64) error { return pruneByBuildKit(ctx, peer.bk, keep) }
	var plans, listings []float64
	for round := range pruneRounds {
		for turn := range sides {
			if err := p.round(ctx, sides[(turn+round)%2], round); err != nil {
				return nil, fmt.Errorf("round %d: %w", round, err)
			}
		}
		plan, list, err := planTimes(ctx, api, ours.bk)
		if err != nil {
			return nil, err
		}
		plans, listings = append(plans, plan...), append(listings, list...)
	}
	ms := func(name, peer string, ours, theirs []float64, limit string) row {
		a, b := median(ours), median(theirs)
		return row{Name: name, Unit: "ms", Ours: a, Peer: peer, PeerValue: b, Ratio: a / b, N: len(ours), limit: limit}
	}
	limits := [2]string{"ratio < 0.33", "ratio < 1"}
	if p.onDisk {
		limits = [2]string{}
	}
	rows := []row{
		ms(p.label(), "buildkitd's prune by size", sides[0].took, sides[1].took, limits[0]),
		ms(p.name("build_pause"), "a build beside buildkitd's prune", sides[0].pauses, sides[1].pauses, limits[1]),
	}
	if !p.onDisk {
		rows = append(rows, ms("plan_of_half_the_cache_vs_du", "buildctl du's call", plans, listings, ""))
	}
	return rows, nil
}

// round fills a cache and frees half of it, alone and then while a build goes on.
func (p pruning) round(ctx context.Context, s *side, round int) error {
	took, err := p.half(ctx, s, 2*round)
	if err != nil {
		return err
	}
	s.took = append(s.took, took)
	building, stop := context.WithCancel(ctx)
	longest := make(chan float64, 1)
	go func() { longest <- longestBuild(building, s.bk) }()
	_, err = p.half(ctx, s, 2*round+1)
	stop()
	s.pauses = append(s.pauses, <-longest)
	return err
}

// half fills a cache, frees half of it, and returns how long that took, in milliseconds.
func (pruning) half(ctx context.Context, s *side, content int) (took float64, err error) {
	if err := fill(ctx, s.bk, content); err != nil {
		return 0, err
	}
	pause(ctx, 1500*time.Millisecond) // what was used in the last second counts as in use
	total, err := sizeOf(ctx, s.bk)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	err = s.prune(ctx, total/2)
	took = float64(time.Since(start)) / float64(time.Millisecond)
	if left, sizeErr := sizeOf(ctx, s.bk); err == nil && (sizeErr != nil || left > total/2+total/100) {
		err = errors.Join(sizeErr, fmt.Errorf("%d bytes are left of %d", left, total))
	}
	return took, err
}

// emptied is a daemon with a cache of its own.
type emptied struct {
	addr string
	bk   *client.Client
}

func (s *stage) cached(ctx context.Context, p pruning) (emptied, error) {
	root, err := p.state(s)
	if err != nil {
		return emptied{}, err
	}
	d, err := s.lab.StartBuildkitd(ctx, lab.BuildkitdOptions{Root: root})
	if err != nil {
		return emptied{}, err
	}
	bk, err := client.New(ctx, d.Addr)
	if err != nil {
		return emptied{}, fmt.Errorf("%w", err)
	}
	s.lab.OnClose("connection to "+d.Addr, func(context.Context) error { return bk.Close() })
	return emptied{d.Addr, bk}, nil
}

func (s *stage) startCacheManager(ctx context.Context, daemon string) (cachemanagerv1.CacheManagerServiceClient, error) {
	m, err := s.lab.StartCacheManager(ctx, &configv1.CacheManagerConfig{
		Interval: durationpb.New(time.Hour), Daemons: []*configv1.DaemonConfig{{Name: "a", Address: daemon}},
	}, lab.ServiceOptions{})
	if err != nil {
		return nil, err
	}
	conn, err := lab.Dial(m.Addr)
	if err != nil {
		return nil, err
	}
	s.lab.OnClose("connection to the cache manager", func(context.Context) error { return conn.Close() })
	return cachemanagerv1.NewCacheManagerServiceClient(conn), nil
}

// fill brings a cache to its records: those that are missing are made, each of 10 kB
// and of no parent.
func fill(ctx context.Context, bk *client.Client, round int) error {
	have, err := bk.DiskUsage(ctx)
	if err != nil {
		return err
	}
	_, err = bk.Build(ctx, client.SolveOpt{Internal: true}, "bench", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(8)
		for i := len(have); i < cacheRecords; i++ {
			name := strconv.Itoa(round) + "-" + strconv.Itoa(i)
			group.Go(func() error { return solve(ctx, c, name) })
		}
		return gateway.NewResult(), group.Wait()
	}, nil)
	return err
}

// solve makes one record.
func solve(ctx context.Context, c gateway.Client, name string) error {
	def, err := llb.Scratch().File(llb.Mkfile("f", 0o644, []byte(name+strings.Repeat("x", 10_000)))).Marshal(ctx)
	if err == nil {
		_, err = c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	}
	return err
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func sizeOf(ctx context.Context, bk *client.Client) (bytes int64, err error) {
	all, err := bk.DiskUsage(ctx)
	for _, r := range all {
		bytes += r.Size
	}
	return bytes, err
}

// longestBuild builds again and again, with a little time between, until ctx ends, and returns how long the longest
// build took, in milliseconds.
func longestBuild(ctx context.Context, bk *client.Client) (longest float64) {
	for ctx.Err() == nil {
		start := time.Now()
		_, err := bk.Build(context.WithoutCancel(ctx), client.SolveOpt{Internal: true}, "bench", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
			return gateway.NewResult(), solve(ctx, c, "beside")
		}, nil)
		if err == nil {
			longest = max(longest, float64(time.Since(start))/float64(time.Millisecond))
		}
		pause(ctx, 20*time.Millisecond)
	}
	return longest
}

func pruneByRPC(ctx context.Context, api cachemanagerv1.CacheManagerServiceClient, keep int64) error {
	stream, err := api.Prune(ctx, &cachemanagerv1.PruneRequest{Force: true, By: &cachemanagerv1.PruneRequest_Policy{Policy: keepBytes(keep)}})
	for err == nil {
		var event *cachemanagerv1.PruneResponse
		if event, err = stream.Recv(); event.GetFinished() != nil && event.GetFinished().GetState() != cachemanagerv1.RunState_RUN_STATE_SUCCEEDED {
			return fmt.Errorf("%v", event.GetFinished())
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func keepBytes(keep int64) *cachemanagerv1.Policy {
	return &cachemanagerv1.Policy{Rules: []*cachemanagerv1.Rule{{Name: "half", Keep: &cachemanagerv1.Keep{Bytes: &keep}}}}
}

func pruneByBuildKit(ctx context.Context, bk *client.Client, keep int64) error {
	gone := make(chan client.UsageInfo)
	var wait sync.WaitGroup
	wait.Go(func() {
		for range gone { // to the end
		}
	})
	err := bk.Prune(ctx, gone, client.PruneAll, client.WithKeepOpt(0, 0, keep, 0))
	close(gone)
	wait.Wait()
	return err
}

// planTimes are the times of plans over a full cache, beside those of its listing.
func planTimes(ctx context.Context, api cachemanagerv1.CacheManagerServiceClient, bk *client.Client) (plans, listings []float64, err error) {
	for range 5 {
		start := time.Now()
		if _, err := bk.DiskUsage(ctx); err != nil {
			return nil, nil, err
		}
		listings = append(listings, float64(time.Since(start))/float64(time.Millisecond))
		start = time.Now()
		if _, err := api.PlanPrune(ctx, &cachemanagerv1.PlanPruneRequest{By: &cachemanagerv1.PlanPruneRequest_Policy{Policy: keepBytes(1)}}); err != nil {
			return nil, nil, err
		}
		plans = append(plans, float64(time.Since(start))/float64(time.Millisecond))
	}
	return plans, listings, nil
}
