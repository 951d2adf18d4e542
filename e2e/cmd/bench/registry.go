package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/e2e/lab"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// sweeping is what the janitor does with a large registry, beside the registry's own
// garbage collection as a dry run: plans with warm and cold page caches, and a sweep beside
// rm of as many directories.
type sweeping struct{}

const (
	planRounds = 3
	day        = 24 * time.Hour
)

var bigRegistry = lab.BigRegistry{Repositories: 1000, Manifests: 10_000, Layers: 10, Tags: 5000}

func (sweeping) label() string { return "plan_120k_vs_registry_gc" }

func (sweeping) run(ctx context.Context, s *stage) (rows []row, err error) {
	r, err := s.lab.StartRegistry(ctx, lab.RegistryOptions{})
	if err != nil {
		return nil, err
	}
	if err := bigRegistry.Write(ctx, r.Storage); err != nil {
		return nil, err
	}
	var gc, first, second, cold, coldGC []float64
	collect := func(into *[]float64) error {
		start := time.Now()
		err := r.CollectGarbage(ctx, "--dry-run", "-m")
		*into = append(*into, ms(start))
		return err
	}
	for round := range planRounds {
		err := errors.Join(collect(&gc), planned(ctx, s, r, &first, &second))
		if err == nil && round == 0 {
			err = dropCaches()
		}
		if err == nil && round == 0 { // once: it takes long
			if err = collect(&coldGC); err == nil {
				err = planned(ctx, s, r, &cold, new([]float64), dropCaches)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	add := func(name, peer, limit string, ours, theirs []float64) {
		a, b := median(ours), median(theirs)
		rows = append(rows, row{Name: name, Unit: "ms", Ours: a, Peer: peer, PeerValue: b, Ratio: a / b, N: len(ours), limit: limit})
	}
	add("plan_120k_vs_registry_gc", "registry garbage-collect --dry-run -m", "ratio < 0.02", first, gc)
	add("second_plan_vs_first", "the first plan", "ratio < 0.2", second, first)
	add("plan_cold_vs_registry_gc", "registry garbage-collect --dry-run -m, cold", "", cold, coldGC)
	swept, removed, err := sweepBesideRM(ctx, s, r)
	if err != nil {
		return rows, err
	}
	add("sweep_vs_rm", "rm -r of a copy of what is swept", "", swept, removed)
	return rows, nil
}

func ms(since time.Time) float64 { return float64(time.Since(since)) / float64(time.Millisecond) }

// dropCaches empties the page cache, which takes root.
func dropCaches() error {
	if err := lab.Sync(); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200)
}

// startJanitor starts one that knows nothing yet.
func startJanitor(ctx context.Context, s *stage, r *lab.Registry) (*lab.Service, janitorv1.JanitorServiceClient, error) {
	j, err := s.lab.StartJanitor(ctx, &configv1.JanitorConfig{
		Registry: &configv1.RegistryConfig{Address: r.Addr, PlainHttp: true, StorageRoot: r.Storage}, CheckInterval: durationpb.New(time.Hour),
	}, lab.ServiceOptions{})
	if err != nil {
		return nil, nil, err
	}
	conn, err := lab.Dial(j.Addr)
	if err != nil {
		return nil, nil, err
	}
	s.lab.OnClose("connection to the janitor", func(context.Context) error { return conn.Close() })
	return j, janitorv1.NewJanitorServiceClient(conn), surveyed(ctx, j)
}

// surveyed waits until a janitor has asked the registry's API for what it holds, as it does at
// its start and then now and then: that is no part of a plan.
func surveyed(ctx context.Context, j *lab.Service) error {
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+j.HTTPAddr+"/metrics", nil)
		if err != nil {
			return err
		}
		req.Close = true
		res, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			return err
		}
		if bytes.Contains(text, []byte("\nkiln_registry_survey_time")) {
			return nil
		}
		pause(ctx, 200*time.Millisecond)
	}
	return context.Cause(ctx)
}

// planned plans twice with a janitor that has just started, and says where the time went.
func planned(ctx context.Context, s *stage, r *lab.Registry, first, second *[]float64, before ...func() error) error {
	j, api, err := startJanitor(ctx, s, r)
	if err != nil {
		return err
	}
	for _, do := range before {
		if err := do(); err != nil {
			return err
		}
	}
	for _, into := range []*[]float64{first, second} {
		start := time.Now()
		res, err := api.PlanRun(ctx, &janitorv1.PlanRunRequest{Policy: weekPolicy(), At: timestamppb.New(time.Now().Add(8 * day))})
		if err != nil {
			return err
		}
		*into = append(*into, ms(start))
		if got := res.GetPlan().GetRemove().GetManifests(); got != int64(bigRegistry.Manifests-bigRegistry.Tags) {
			return fmt.Errorf("the plan names %d manifests: %v", got, res.GetPlan())
		}
		fmt.Printf("  %.0f ms; %s, peak %s of memory\n", ms(start), partsOf(res.GetPlan()), peak(j.PID()))
	}
	return j.Stop(ctx)
}

func partsOf(p *janitorv1.Plan) string {
	return fmt.Sprintf("walk %s, parse %s, links %s, plan %s", p.GetWalkTime().AsDuration().Round(time.Millisecond), p.GetParseTime().AsDuration().Round(time.Millisecond),
		p.GetLinkTime().AsDuration().Round(time.Millisecond), p.GetPlanTime().AsDuration().Round(time.Millisecond))
}

// peak is the most memory that a process has had.
func peak(pid int) string {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return "?"
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return strings.Join(strings.Fields(rest), " ")
		}
	}
	return "?"
}

func weekPolicy() *janitorv1.Policy {
	return &janitorv1.Policy{
		Rules: []*janitorv1.Rule{
			{Name: "untagged", Match: &janitorv1.Match{Tagging: janitorv1.Tagging_TAGGING_UNTAGGED}, Keep: &janitorv1.Keep{Age: durationpb.New(7 * day)}},
		},
		MaxBuildTime: durationpb.New(0), Quarantine: durationpb.New(0), BlobGrace: durationpb.New(time.Second),
	}
}

// sweepBesideRM sweeps half of the registry, and then removes a copy of what it was.
func sweepBesideRM(ctx context.Context, s *stage, r *lab.Registry) (swept, removed []float64, err error) {
	half := lab.BigRegistry{Repositories: 1000, Manifests: bigRegistry.Manifests - bigRegistry.Tags, Layers: bigRegistry.Layers}
	dir := filepath.Join(s.lab.Dir, "half")
	if err := half.Write(ctx, dir); err != nil {
		return nil, nil, err
	}
	j, api, err := startJanitor(ctx, s, r)
	if err != nil {
		return nil, nil, err
	}
	policy := weekPolicy()
	policy.Rules[0].Keep.Age = durationpb.New(0)
	start := time.Now()
	stream, err := api.Run(ctx, &janitorv1.RunRequest{By: &janitorv1.RunRequest_Policy{Policy: policy}, Force: true})
	if err != nil {
		return nil, nil, err
	}
	var last *janitorv1.Run
	for err == nil {
		var event *janitorv1.RunResponse
		if event, err = stream.Recv(); event.GetFinished() != nil {
			last = event.GetFinished()
		}
	}
	if !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	swept = append(swept, ms(start))
	if got := last.GetRemoved(); got.GetManifests() != int64(half.Manifests) || got.GetBlobs() != int64(half.Blobs()-half.Manifests) {
		return nil, nil, fmt.Errorf("%v", last)
	}
	fmt.Printf("  sweep %.0f ms, peak %s of memory\n", swept[0], peak(j.PID()))
	start = time.Now()
	if _, err := lab.Exec(ctx, lab.Command{Path: "/bin/rm", Args: []string{"-r", dir}}); err != nil {
		return nil, nil, err
	}
	return swept, append(removed, ms(start)), j.Stop(ctx)
}
