// Package grpcapi serves the Cache API: it translates between the contract and
// the domain, and decides nothing.
package grpcapi

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/rpc"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/usage"
)

// Server serves kiln.cachemanager.v1.CacheManagerService.
type Server struct {
	cachemanagerv1.UnimplementedCacheManagerServiceServer

	collector *usage.Collector
	policy    enforce.Policy
}

// NewServer returns a server of what the collector finds.
func NewServer(collector *usage.Collector, policy enforce.Policy) *Server {
	return &Server{collector: collector, policy: policy}
}

// GetUsage implements the RPC.
func (s *Server) GetUsage(ctx context.Context, req *cachemanagerv1.GetUsageRequest) (*cachemanagerv1.GetUsageResponse, error) {
	names, err := daemonsOf(req.GetCaches())
	if err != nil {
		return nil, err
	}
	all, err := s.collector.Collect(ctx, names)
	if err != nil {
		return nil, err
	}
	return &cachemanagerv1.GetUsageResponse{Usage: s.usageToProto(all)}, nil
}

// daemonsOf are the names of the daemons that the references name.
func daemonsOf(refs []*cachemanagerv1.CacheRef) ([]string, error) {
	var names []string
	for _, ref := range refs {
		if dir := ref.GetDirectory(); dir != "" {
			return nil, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no cache directory %q: none is configured", dir),
				"name daemons only, or no cache for all")
		}
		names = append(names, ref.GetDaemon())
	}
	return names, nil
}

func (s *Server) usageToProto(all []usage.OfDaemon) *cachemanagerv1.Usage {
	out := &cachemanagerv1.Usage{}
	var total usage.Totals
	for _, one := range all {
		item := &cachemanagerv1.CacheUsage{
			Cache: &cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Daemon{Daemon: one.Daemon}},
		}
		out.Caches = append(out.Caches, item)
		if one.Err != nil {
			item.Error = rpc.Status(one.Err).Proto()
			continue
		}
		total = total.Plus(one.Total)
		item.Time = timestamppb.New(one.Time)
		item.Total = totalsToProto(one.Total)
		for _, t := range one.Types {
			item.Types = append(item.Types, &cachemanagerv1.TypeUsage{Type: typeToProto(t.Type), Total: totalsToProto(t.Totals)})
		}
		item.LimitBytes = &s.policy.KeepBytes
		item.LimitAge = durationpb.New(s.policy.KeepAge)
	}
	out.Total = totalsToProto(total)
	return out
}

func totalsToProto(t usage.Totals) *cachemanagerv1.Totals {
	return &cachemanagerv1.Totals{
		Records: t.Records, SizeBytes: t.Bytes, SharedBytes: t.SharedBytes, ReclaimableBytes: t.ReclaimableBytes(),
		InUseRecords: t.InUseRecords, InUseBytes: t.InUseBytes, OldestUseTime: timeToProto(t.OldestUse),
	}
}

// timeToProto is unset for the zero time.
func timeToProto(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func typeToProto(t cache.Type) cachemanagerv1.RecordType {
	switch t {
	case cache.Regular:
		return cachemanagerv1.RecordType_RECORD_TYPE_REGULAR
	case cache.SourceLocal:
		return cachemanagerv1.RecordType_RECORD_TYPE_SOURCE_LOCAL
	case cache.GitCheckout:
		return cachemanagerv1.RecordType_RECORD_TYPE_SOURCE_GIT_CHECKOUT
	case cache.CacheMount:
		return cachemanagerv1.RecordType_RECORD_TYPE_EXEC_CACHE_MOUNT
	case cache.Frontend:
		return cachemanagerv1.RecordType_RECORD_TYPE_FRONTEND
	case cache.Internal:
		return cachemanagerv1.RecordType_RECORD_TYPE_INTERNAL
	case cache.Unknown:
	}
	return cachemanagerv1.RecordType_RECORD_TYPE_UNSPECIFIED
}
