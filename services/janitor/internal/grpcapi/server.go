// Package grpcapi serves the Janitor API: it translates between the contract and
// the domain, and decides nothing.
package grpcapi

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/growth"
	"github.com/kilnbuild/kiln/pkg/rpc"
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
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// Checker checks the registry.
type Checker interface {
	Check(ctx context.Context, names []string) (check.Report, error)
}

// Surveyor looks at the whole registry.
type Surveyor interface {
	Page(ctx context.Context, q usage.Query) (usage.Page, error)
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
	Now      func() time.Time // that ages are counted to
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

// defaultPageSize is used when a request names none.
const defaultPageSize = 50

// GetUsage implements the RPC.
func (s *Server) GetUsage(ctx context.Context, req *janitorv1.GetUsageRequest) (*janitorv1.GetUsageResponse, error) {
	size := int(req.GetPageSize())
	if size == 0 {
		size = defaultPageSize
	}
	page, err := s.Surveyor.Page(ctx, usage.Query{Repositories: req.GetRepositories(), Size: size, Token: req.GetPageToken()})
	if err != nil {
		return nil, err
	}
	res := &janitorv1.GetUsageResponse{
		Time: timestamppb.New(page.Time), Total: totalToProto(page.Snapshot), NextPageToken: page.Next,
	}
	for _, r := range page.Repositories {
		res.Repositories = append(res.Repositories, repositoryToProto(r, req.GetWithTags()))
	}
	if res.Total.Forecast, err = s.forecast(ctx, page.Snapshot); err != nil || !req.GetWithRules() {
		return res, err
	}
	plan, err := s.Engine.Plan(ctx, enforce.Ask{})
	if err != nil {
		return nil, err
	}
	res.Rules = wire.RulesProto(plan.Rules)
	return res, nil
}

// forecast says how the registry grows; nil when it was not watched for long enough.
func (s *Server) forecast(ctx context.Context, snapshot usage.Snapshot) (*janitorv1.Forecast, error) {
	samples, err := s.State.Samples(ctx)
	if err != nil {
		return nil, err
	}
	free := int64(-1)
	if snapshot.Storage != nil && snapshot.Storage.Err == nil && snapshot.Storage.DiskTotal > 0 {
		free = snapshot.Storage.DiskFree
	}
	f, ok := growth.Of(samples, free, snapshot.Time)
	if !ok {
		return nil, nil //nolint:nilnil // there is none
	}
	out := &janitorv1.Forecast{GrowthBytesPerDay: f.BytesPerDay, Watched: durationpb.New(f.Watched)}
	if !f.Full.IsZero() {
		out.FullTime = timestamppb.New(f.Full)
	}
	return out, nil
}

func totalToProto(s usage.Snapshot) *janitorv1.RegistryUsage {
	t := s.Total
	return &janitorv1.RegistryUsage{
		Repositories: t.Repositories, FailedRepositories: t.Failed, Tags: t.Tags, Manifests: t.Manifests, Blobs: t.Blobs,
		DeduplicatedBytes: t.DeduplicatedBytes, SumOwnBytes: t.SumOwnBytes, Storage: storageToProto(s.Storage),
	}
}

func storageToProto(s *usage.Storage) *janitorv1.StorageUsage {
	switch {
	case s == nil:
		return nil
	case s.Err != nil:
		return &janitorv1.StorageUsage{Error: rpc.Status(fault.Wrap(s.Err, fault.Unavailable, "REGISTRY_UNAVAILABLE",
			"the registry's storage cannot be read", "let the janitor's user read it, and check registry.storage_root")).Proto()}
	}
	out := &janitorv1.StorageUsage{
		Blobs: s.Blobs, BlobBytes: s.BlobBytes, UntaggedBytes: s.UntaggedBytes, Uploads: s.Uploads, UploadBytes: s.UploadBytes,
		QuarantineBytes: s.Quarantined,
	}
	if s.DiskTotal > 0 {
		out.Disk = &janitorv1.Disk{TotalBytes: s.DiskTotal, FreeBytes: s.DiskFree}
	}
	return out
}

func repositoryToProto(r usage.RepositoryUsage, withTags bool) *janitorv1.RepositoryUsage {
	if r.Err != nil {
		return &janitorv1.RepositoryUsage{Repository: r.Name, Error: rpc.Status(r.Err).Proto()}
	}
	out := &janitorv1.RepositoryUsage{
		Repository: r.Name, Tags: r.Tags, Manifests: r.Manifests, Blobs: r.Blobs, OwnBytes: r.OwnBytes,
		SharedBytes: r.SharedBytes, ExclusiveBytes: r.ExclusiveBytes, BrokenManifests: r.Broken,
	}
	if !withTags {
		return out
	}
	for _, tag := range r.TagUsages {
		out.TagUsages = append(out.TagUsages, &janitorv1.TagUsage{
			Tag: tag.Name, Digest: string(tag.Digest), OwnBytes: tag.OwnBytes, ExclusiveBytes: tag.ExclusiveBytes,
		})
	}
	return out
}
