package e2e_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
)

// daemonRule is a random rule of BuildKit's. Its times are far from the uses of now.
func daemonRule(random *rand.Rand, total int64) *cachemanagerv1.DaemonRule {
	rule := &cachemanagerv1.DaemonRule{All: random.IntN(2) == 0}
	if random.IntN(3) == 0 {
		rule.Filters = [][]string{
			{"type==source.local"}, {"type==exec.cachemount", "type==source.local"}, {"mutable"}, {"immutable,type==regular"}, {`description~="COPY f[01]"`},
		}[random.IntN(5)]
	}
	if random.IntN(4) == 0 {
		rule.KeepDuration = durationpb.New(time.Hour) // all was used since
	}
	switch random.IntN(4) {
	case 0, 1:
		rule.MaxUsedSpaceBytes = random.Int64N(total + 1)
	case 2:
		rule.ReservedSpaceBytes = random.Int64N(total + 1)
	}
	if rule.GetMaxUsedSpaceBytes() == 0 && rule.GetReservedSpaceBytes() == 0 && random.IntN(4) > 0 {
		rule.MaxUsedSpaceBytes = 1 + total/2 // seldom everything
	}
	return rule
}

// What the simulation of BuildKit's own rules calls certain is what its own prune by
// the same rules removes, and what it calls tied is where the rest comes from.
func TestS4_DaemonRulesComeTrue(t *testing.T) {
	l := labtest.New(t)
	ctx := labtest.Context(t, 2*time.Minute+time.Duration(rounds(t, 40))*5*time.Second)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}}))(t)
	bk := labtest.Must(client.New(ctx, daemon.Addr))(t)
	defer func() { _ = bk.Close() }()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	work := mixed{daemon, labtest.Must(image.PushBase(ctx, registry.Addr))(t), rand.New(rand.NewPCG(seed, 0))} //nolint:gosec // to be told again
	m := startCacheManager(t, l, manual(), nil, daemon)
	for range 4 {
		work.build(t)
	}
	went, tied := 0, 0
	soaked(t, &went)
	for round := range rounds(t, 40) {
		work.build(t)
		var total int64
		for _, r := range m.records(t) {
			total += r.GetSizeBytes()
		}
		labtest.Eventually(t, 10*time.Second, "nothing that was used just now", func() bool {
			return !slices.ContainsFunc(m.records(t), func(r *cachemanagerv1.Record) bool { return r.GetInUse() })
		})
		rules := []*cachemanagerv1.DaemonRule{daemonRule(work.random, total)}
		if work.random.IntN(2) == 0 {
			rules = append(rules, daemonRule(work.random, total))
		}
		res := labtest.Must(m.api.PlanPrune(ctx, &cachemanagerv1.PlanPruneRequest{
			By: &cachemanagerv1.PlanPruneRequest_DaemonRules{DaemonRules: &cachemanagerv1.DaemonRules{Rules: rules}}, WithKept: true, PageSize: 1000,
		}))(t)
		gone := pruneByRules(ctx, t, bk, rules)
		went += len(gone)
		open := false
		for _, v := range res.GetVerdicts() {
			id, goes := v.GetRecord().GetId(), v.GetAction() == remove
			if v.GetCertainty() == cachemanagerv1.Certainty_CERTAINTY_TIED {
				tied, open = tied+1, true
			} else if goes && !slices.Contains(gone, id) {
				t.Errorf("round %d: %s is certain to go, and stays: %v\nrules %v", round, id, v, rules)
			} else if !goes && !open && slices.Contains(gone, id) {
				t.Errorf("round %d: %s is to stay, and goes: %v\nrules %v", round, id, v, rules)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d records went, %d verdicts were tied", went, tied)
	if went == 0 {
		t.Error("nothing ever went")
	}
}

// pruneByRules has the daemon prune, one rule at a time, and returns what went.
func pruneByRules(ctx context.Context, t *testing.T, bk *client.Client, rules []*cachemanagerv1.DaemonRule) (ids []string) {
	t.Helper()
	for _, rule := range rules {
		gone := make(chan client.UsageInfo, 1000)
		opts := []client.PruneOption{
			client.WithFilter(rule.GetFilters()),
			client.WithKeepOpt(rule.GetKeepDuration().AsDuration(), rule.GetReservedSpaceBytes(), rule.GetMaxUsedSpaceBytes(), rule.GetMinFreeSpaceBytes()),
		}
		if rule.GetAll() {
			opts = append(opts, client.PruneAll)
		}
		if err := bk.Prune(ctx, gone, opts...); err != nil {
			t.Fatal(err)
		}
		close(gone)
		for info := range gone {
			ids = append(ids, info.ID)
		}
	}
	return ids
}
