package grpcapi

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/growth"
	"github.com/kilnbuild/kiln/pkg/rpc"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// usagePlace is what the page token of a survey holds.
type usagePlace struct {
	Survey int64 // its time, as nanoseconds since 1970
	From   int
}

// GetUsage implements the RPC.
func (s *Server) GetUsage(ctx context.Context, req *janitorv1.GetUsageRequest) (*janitorv1.GetUsageResponse, error) {
	list, err := s.Pages.Query(ctx, req)
	if err != nil {
		return nil, err
	}
	var at usagePlace
	if err := list.Read(&at); err != nil {
		return nil, err
	}
	snapshot, err := s.Surveyor.Chosen(ctx, req.GetRepositories(), at.Survey)
	if err != nil {
		return nil, err
	}
	res := &janitorv1.GetUsageResponse{Time: timestamppb.New(snapshot.Time), Total: totalToProto(snapshot)}
	if res.Total.Forecast, err = s.forecast(ctx, snapshot); err != nil {
		return nil, err
	}
	if req.GetWithRules() {
		plan, err := s.Engine.Plan(ctx, enforce.Ask{})
		if err != nil {
			return nil, err
		}
		res.Rules = wire.RulesProto(plan.Rules)
	}
	var next int
	res.Repositories, next = aip.Page(aip.NewRoom(req.GetPageSize(), res), snapshot.Repositories, at.From,
		func(r usage.RepositoryUsage) *janitorv1.RepositoryUsage {
			return repositoryToProto(r, req.GetWithTags())
		})
	if next > 0 {
		res.NextPageToken = list.Token(usagePlace{snapshot.Time.UnixNano(), next})
	}
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
