// Package grpcapi serves the Cache API: it translates between the contract and
// the domain, and decides nothing.
package grpcapi

import (
	"context"
	"time"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/growth"
	"github.com/kilnbuild/kiln/pkg/pagetoken"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/attribution"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/local"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/usage"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// State is what is asked of the state here.
type State interface {
	policy.Store
	PolicyVersion(ctx context.Context, version int64) (policy.Policy, error)
	AddPin(ctx context.Context, p policy.Pin, requestID string) (policy.Pin, error)
	Pins(ctx context.Context, now time.Time) ([]policy.Pin, error)
	RemovePin(ctx context.Context, id string) (policy.Pin, error)
	AddReport(ctx context.Context, b attribution.Build, now time.Time) error
	Hits(ctx context.Context, after time.Time) (map[string]usage.Hits, error)
	Samples(ctx context.Context, ref cache.Ref) ([]growth.Sample, error)
	PlanOf(ctx context.Context, digest string) (run.Plan, error)
	Runs(ctx context.Context, size int, before time.Time, beforeID string) ([]run.Run, error)
	RunOf(ctx context.Context, id string) (run.Run, error)
	Verdicts(ctx context.Context, id string, from, size int) ([]plan.Verdict, error)
}

// Options is what a server is made of.
type Options struct {
	Engine      *enforce.Engine
	State       State
	Directories []*local.Directory
	NewID       func() string
	Pages       *pagetoken.Tokens // seals the tokens of lists
	Now         func() time.Time  // that ages are counted to
}

// Server serves kiln.cachemanager.v1.CacheManagerService.
type Server struct {
	cachemanagerv1.UnimplementedCacheManagerServiceServer

	opts Options
}

// NewServer returns a server.
func NewServer(opts Options) *Server { return &Server{opts: opts} }

func refsOf(in []*cachemanagerv1.CacheRef) []cache.Ref {
	refs := make([]cache.Ref, 0, len(in))
	for _, ref := range in {
		refs = append(refs, wire.Ref(ref))
	}
	return refs
}

// caller is the identity of who calls, empty without one.
func caller(ctx context.Context) string { return auth.FromContext(ctx).Name }
