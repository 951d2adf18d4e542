// Package grpcapi serves the Janitor API: it translates between the contract and
// the domain, and decides nothing.
package grpcapi

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/growth"
	"github.com/kilnbuild/kiln/pkg/pagetoken"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/check"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/lease"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
	"github.com/kilnbuild/kiln/services/janitor/internal/verify"
)

// Checker checks the registry.
type Checker interface {
	Check(ctx context.Context, names []string) (check.Report, error)
}

// Surveyor looks at the whole registry.
type Surveyor interface {
	Chosen(ctx context.Context, patterns []string, survey int64) (usage.Snapshot, error)
}

// Schedule starts runs by itself.
type Schedule interface {
	Status() enforce.Status
}

// State is what outlives the process.
type State interface {
	policy.Store
	PolicyVersion(ctx context.Context, version int64) (policy.Policy, error)
	RunOf(ctx context.Context, id string) (run.Run, error)
	Runs(ctx context.Context, size int, before time.Time, beforeID string) ([]run.Run, error)
	Verdicts(ctx context.Context, id string, from, size int) ([]plan.Verdict, error)
	AcquireLease(ctx context.Context, l lease.Lease) (lease.Lease, error)
	RenewLease(ctx context.Context, id string, ttl time.Duration, now time.Time) (lease.Lease, error)
	ReleaseLease(ctx context.Context, id string, now time.Time) error
	RecordUses(ctx context.Context, uses []lastuse.Use) (news int, err error)
	Samples(ctx context.Context) ([]growth.Sample, error)
}

// Options is what a server is made of.
type Options struct {
	Address  string // of the registry
	Names    lastuse.Registry
	Checker  Checker
	Surveyor Surveyor
	Engine   *enforce.Engine
	Schedule Schedule
	Verified verify.Storage // nil: out of reach
	State    State
	Life     context.Context //nolint:containedctx // that of the service: runs outlive the calls that start them
	NewID    func() string
	Pages    *pagetoken.Tokens // seals the tokens of lists
	Now      func() time.Time  // that ages are counted to
}

// Server serves kiln.janitor.v1.JanitorService.
type Server struct {
	janitorv1.UnimplementedJanitorServiceServer
	Options
}

// NewServer returns a server about one registry.
func NewServer(opts Options) *Server { return &Server{Options: opts} }

func sorted(all []string) []string {
	slices.Sort(all)
	return all
}

// CheckRegistry implements the RPC.
func (s *Server) CheckRegistry(ctx context.Context, req *janitorv1.CheckRegistryRequest) (*janitorv1.CheckRegistryResponse, error) {
	report, err := s.Checker.Check(ctx, req.GetChecks())
	if err != nil {
		return nil, err
	}
	res := &janitorv1.CheckRegistryResponse{
		Registry: s.Address, State: stateToProto(report.State), Time: timestamppb.New(report.Time),
	}
	for _, result := range report.Results {
		res.Checks = append(res.Checks, resultToProto(result))
	}
	return res, nil
}

func resultToProto(r check.Result) *janitorv1.Check {
	out := &janitorv1.Check{
		Name: r.Name, State: stateToProto(r.State), Message: r.Message, Remedy: r.Remedy, Duration: durationpb.New(r.Took),
	}
	switch {
	case r.Latency != nil:
		out.Value = &janitorv1.Check_Latency{Latency: durationpb.New(*r.Latency)}
	case r.Repositories != nil:
		out.Value = &janitorv1.Check_Repositories{Repositories: int64(*r.Repositories)}
	case r.Disk != nil:
		out.Value = &janitorv1.Check_Disk{Disk: &janitorv1.Disk{TotalBytes: r.Disk.Total, FreeBytes: r.Disk.Free}}
	case r.DeleteEnabled != nil:
		out.Value = &janitorv1.Check_DeleteEnabled{DeleteEnabled: *r.DeleteEnabled}
	}
	return out
}

func stateToProto(s check.State) janitorv1.CheckState {
	switch s {
	case check.OK:
		return janitorv1.CheckState_CHECK_STATE_OK
	case check.Unknown:
		return janitorv1.CheckState_CHECK_STATE_UNKNOWN
	case check.Warn:
		return janitorv1.CheckState_CHECK_STATE_WARN
	case check.Fail:
		return janitorv1.CheckState_CHECK_STATE_FAIL
	}
	return janitorv1.CheckState_CHECK_STATE_UNSPECIFIED
}
