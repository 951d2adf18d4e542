package grpcapi

import (
	"cmp"
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/pkg/fault"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/local"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// VerifyCache implements the RPC.
func (s *Server) VerifyCache(req *cachemanagerv1.VerifyCacheRequest, stream cachemanagerv1.CacheManagerService_VerifyCacheServer) error {
	chosen, err := s.directories(req.GetDirectories())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	send := func(res *cachemanagerv1.VerifyCacheResponse) {
		if err := stream.Send(res); err != nil {
			cancel(err)
		}
	}
	var before, last cache.VerifyProgress
	for _, d := range chosen {
		tell := func(defect cache.Defect) {
			send(&cachemanagerv1.VerifyCacheResponse{Event: &cachemanagerv1.VerifyCacheResponse_Defect{Defect: wire.DefectProto(d.Ref(), defect)}})
		}
		progress := func(p cache.VerifyProgress) {
			last = sum(before, p)
			send(&cachemanagerv1.VerifyCacheResponse{Event: &cachemanagerv1.VerifyCacheResponse_Progress{Progress: progressProto(last)}})
		}
		if err := d.Verify(ctx, req.GetMaxBytesPerSecond(), tell, progress); err != nil {
			return err
		}
		before = last
	}
	return stream.Send(&cachemanagerv1.VerifyCacheResponse{Event: &cachemanagerv1.VerifyCacheResponse_Finished{Finished: progressProto(last)}})
}

func sum(a, b cache.VerifyProgress) cache.VerifyProgress {
	return cache.VerifyProgress{
		Blobs: a.Blobs + b.Blobs, TotalBlobs: a.TotalBlobs + b.TotalBlobs, Bytes: a.Bytes + b.Bytes, TotalBytes: a.TotalBytes + b.TotalBytes,
		Defects: a.Defects + b.Defects,
	}
}

func progressProto(p cache.VerifyProgress) *cachemanagerv1.VerifyProgress {
	return &cachemanagerv1.VerifyProgress{Blobs: p.Blobs, TotalBlobs: p.TotalBlobs, SizeBytes: p.Bytes, TotalBytes: p.TotalBytes, Defects: p.Defects}
}

// CleanCache implements the RPC.
func (s *Server) CleanCache(req *cachemanagerv1.CleanCacheRequest, stream cachemanagerv1.CacheManagerService_CleanCacheServer) error {
	order := enforce.Order{
		Trigger: run.Demand, Caches: refsOf(req.GetCaches()), Clean: enforce.Repair, Force: req.GetForce(), All: true,
		Caller: caller(stream.Context()), RequestID: req.GetRequestId(),
	}
	if req.GetAll() {
		order.Clean = enforce.Empty
	}
	return s.run(stream.Context(), order, func(e enforce.Event) error {
		if res := cleanProto(e); res != nil {
			return stream.Send(res)
		}
		return nil
	})
}

func cleanProto(e enforce.Event) *cachemanagerv1.CleanCacheResponse {
	switch {
	case e.Started != nil:
		return &cachemanagerv1.CleanCacheResponse{Event: &cachemanagerv1.CleanCacheResponse_Started{Started: wire.RunProto(*e.Started)}}
	case e.Repaired != nil:
		return &cachemanagerv1.CleanCacheResponse{Event: &cachemanagerv1.CleanCacheResponse_Repaired{Repaired: wire.DefectProto(e.Repaired.Cache, e.Repaired.Defect)}}
	case e.Removed != nil:
		return &cachemanagerv1.CleanCacheResponse{Event: &cachemanagerv1.CleanCacheResponse_Removed{Removed: wire.VerdictProto(*e.Removed)}}
	case e.Finished != nil:
		return &cachemanagerv1.CleanCacheResponse{Event: &cachemanagerv1.CleanCacheResponse_Finished{Finished: wire.RunProto(*e.Finished)}}
	}
	return nil
}

// directories are those of the paths, or all when there is none.
func (s *Server) directories(paths []string) ([]*local.Directory, error) {
	if len(paths) == 0 {
		return s.opts.Directories, nil
	}
	var all []*local.Directory
	for _, path := range paths {
		d, err := s.directory(path)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

func (s *Server) directory(path string) (*local.Directory, error) {
	for _, d := range s.opts.Directories {
		if d.Ref().Directory == path {
			return d, nil
		}
	}
	for _, d := range s.opts.Directories {
		if d.At(path) {
			return d, nil
		}
	}
	unknown := fault.New(fault.NotFound, "NOT_FOUND", "directory "+path+" is not configured",
		"name one of the directories of the cache manager's configuration, or add it there")
	unknown.Field, unknown.Value = "directory", path
	return nil, unknown
}

// defaultTTL is how long a lease lasts for who does not say.
const defaultTTL = time.Minute

// AcquireLease implements the RPC.
func (s *Server) AcquireLease(ctx context.Context, req *cachemanagerv1.AcquireLeaseRequest) (*cachemanagerv1.AcquireLeaseResponse, error) {
	d, err := s.directory(req.GetDirectory())
	if err != nil {
		return nil, err
	}
	want := local.Lease{
		Tag: cmp.Or(req.GetTag(), "latest"), Mode: local.Import, Holder: req.GetHolder(), TTL: cmp.Or(req.GetTtl().AsDuration(), defaultTTL),
		RequestID: req.GetRequestId(), Project: req.GetProject(), Digest: digest.Digest(req.GetDigest()),
	}
	if req.GetMode() == cachemanagerv1.LeaseMode_LEASE_MODE_EXPORT {
		want.Mode = local.Export
	}
	l, err := d.Acquire(ctx, want)
	if err != nil {
		return nil, err
	}
	return &cachemanagerv1.AcquireLeaseResponse{Lease: wire.LeaseProto(d.Ref().Directory, l)}, nil
}

// RenewLease implements the RPC.
func (s *Server) RenewLease(ctx context.Context, req *cachemanagerv1.RenewLeaseRequest) (*cachemanagerv1.RenewLeaseResponse, error) {
	var unknown error = fault.New(fault.NotFound, "NOT_FOUND", "there is no lease "+req.GetLeaseId(), "take one with AcquireLease")
	for _, d := range s.opts.Directories {
		l, err := d.Renew(ctx, req.GetLeaseId(), req.GetTtl().AsDuration())
		switch {
		case err == nil:
			return &cachemanagerv1.RenewLeaseResponse{Lease: wire.LeaseProto(d.Ref().Directory, l)}, nil
		case fault.KindOf(err) != fault.NotFound:
			return nil, err
		}
		unknown = err
	}
	return nil, unknown
}

// ReleaseLease implements the RPC.
func (s *Server) ReleaseLease(ctx context.Context, req *cachemanagerv1.ReleaseLeaseRequest) (*cachemanagerv1.ReleaseLeaseResponse, error) {
	for _, d := range s.opts.Directories {
		if known, err := d.Release(ctx, req.GetLeaseId()); err != nil || known {
			return &cachemanagerv1.ReleaseLeaseResponse{}, err
		}
	}
	return &cachemanagerv1.ReleaseLeaseResponse{}, nil
}
