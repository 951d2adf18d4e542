package grpcapi

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/pkg/growth"
	"github.com/kilnbuild/kiln/pkg/rpc"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/usage"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// GetUsage implements the RPC.
func (s *Server) GetUsage(ctx context.Context, req *cachemanagerv1.GetUsageRequest) (*cachemanagerv1.GetUsageResponse, error) {
	all, err := s.usage(ctx, refsOf(req.GetCaches()))
	if err != nil {
		return nil, err
	}
	return &cachemanagerv1.GetUsageResponse{Usage: all}, nil
}

// defaultInterval is the time between two answers of WatchUsage.
const defaultInterval = 10 * time.Second

// WatchUsage implements the RPC. Caches that are away are told of as such, also when
// all of them are.
func (s *Server) WatchUsage(req *cachemanagerv1.WatchUsageRequest, stream cachemanagerv1.CacheManagerService_WatchUsageServer) error {
	interval := defaultInterval
	if asked := req.GetInterval(); asked != nil {
		interval = asked.AsDuration()
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		all, err := s.watched(stream.Context(), refsOf(req.GetCaches()))
		if err != nil {
			return err
		}
		if err := stream.Send(&cachemanagerv1.WatchUsageResponse{Usage: all}); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-stream.Context().Done():
			return context.Cause(stream.Context())
		}
	}
}

func (s *Server) watched(ctx context.Context, refs []cache.Ref) (*cachemanagerv1.Usage, error) {
	listings, missed, err := s.opts.Engine.List(ctx, refs)
	if err != nil && len(missed) == 0 || ctx.Err() != nil {
		return nil, err
	}
	return s.usageOf(ctx, listings, missed)
}

func (s *Server) usage(ctx context.Context, refs []cache.Ref) (*cachemanagerv1.Usage, error) {
	listings, missed, err := s.opts.Engine.List(ctx, refs)
	if err != nil {
		return nil, err
	}
	return s.usageOf(ctx, listings, missed)
}

func (s *Server) usageOf(ctx context.Context, listings []cache.Listing, missed []run.Missed) (*cachemanagerv1.Usage, error) {
	p, err := s.opts.State.PolicyInForce(ctx)
	if err != nil {
		return nil, err
	}
	if p, err = policy.Resolve(p); err != nil {
		return nil, err
	}
	out := &cachemanagerv1.Usage{}
	var total usage.Totals
	for _, l := range listings {
		snapshot := usage.Summarize(l)
		total = total.Plus(snapshot.Total)
		item := &cachemanagerv1.CacheUsage{Cache: wire.RefProto(l.Cache), Time: timestamppb.New(l.Time), Total: totalsProto(snapshot.Total)}
		for _, t := range snapshot.Types {
			item.Types = append(item.Types, &cachemanagerv1.TypeUsage{Type: wire.TypeProto(t.Type), Total: totalsProto(t.Totals)})
		}
		if l.Disk != nil {
			item.Disk = &cachemanagerv1.Disk{TotalBytes: l.Disk.TotalBytes, FreeBytes: l.Disk.FreeBytes}
		}
		if l.ClockOffset != 0 {
			item.ClockOffset = durationpb.New(l.ClockOffset)
		}
		if item.Forecast, err = s.forecast(ctx, l); err != nil {
			return nil, err
		}
		limits := policy.LimitsOf(p, l.Cache)
		item.LimitBytes = limits.Bytes
		if limits.Age != nil {
			item.LimitAge = durationpb.New(*limits.Age)
		}
		images := usage.ByImage(l)
		for _, g := range images[:min(len(images), maxImages)] {
			item.Images = append(item.Images, &cachemanagerv1.ImageUsage{Image: g.Name, Total: totalsProto(g.Totals)})
		}
		out.Caches = append(out.Caches, item)
	}
	if out.Projects, err = s.projects(ctx, listings); err != nil {
		return nil, err
	}
	for _, m := range missed {
		out.Caches = append(out.Caches, &cachemanagerv1.CacheUsage{Cache: wire.RefProto(m.Cache), Error: rpc.Status(m.Err).Proto()})
	}
	slices.SortFunc(out.Caches, func(a, b *cachemanagerv1.CacheUsage) int {
		return wire.Ref(a.GetCache()).Compare(wire.Ref(b.GetCache()))
	})
	out.Total = totalsProto(total)
	return out, nil
}

// How many are told of.
const (
	maxImages   = 100
	maxProjects = 1000
)

// projects says what each project takes, and how much its builds found in caches.
func (s *Server) projects(ctx context.Context, listings []cache.Listing) (all []*cachemanagerv1.ProjectUsage, err error) {
	hits, err := s.opts.State.Hits(ctx, s.opts.Now().Add(-usage.HitWindow))
	if err != nil {
		return nil, err
	}
	for _, g := range usage.ByProject(listings) {
		all = append(all, &cachemanagerv1.ProjectUsage{
			Project: g.Name, Total: totalsProto(g.Totals), CachedSteps: hits[g.Name].Cached, TotalSteps: hits[g.Name].Total,
		})
		delete(hits, g.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(hits)) { // whose records are gone
		all = append(all, &cachemanagerv1.ProjectUsage{
			Project: name, Total: totalsProto(usage.Totals{}), CachedSteps: hits[name].Cached, TotalSteps: hits[name].Total,
		})
	}
	return all[:min(len(all), maxProjects)], nil
}

// ReportBuild implements the RPC.
func (s *Server) ReportBuild(ctx context.Context, req *cachemanagerv1.ReportBuildRequest) (*cachemanagerv1.ReportBuildResponse, error) {
	if err := s.opts.State.AddReport(ctx, wire.Report(req), time.Now()); err != nil {
		return nil, err
	}
	return &cachemanagerv1.ReportBuildResponse{}, nil
}

// forecast says how a cache grows; nil when it was not watched for long enough.
func (s *Server) forecast(ctx context.Context, l cache.Listing) (*cachemanagerv1.Forecast, error) {
	samples, err := s.opts.State.Samples(ctx, l.Cache)
	if err != nil {
		return nil, err
	}
	free := int64(-1)
	if l.Disk != nil {
		free = l.Disk.FreeBytes
	}
	f, ok := growth.Of(samples, free, l.Time)
	if !ok {
		return nil, nil
	}
	out := &cachemanagerv1.Forecast{GrowthBytesPerDay: f.BytesPerDay, Watched: durationpb.New(f.Watched)}
	if !f.Full.IsZero() {
		out.FullTime = timestamppb.New(f.Full)
	}
	return out, nil
}

func totalsProto(t usage.Totals) *cachemanagerv1.Totals {
	out := &cachemanagerv1.Totals{
		Records: t.Records, SizeBytes: t.Bytes, SharedBytes: t.SharedBytes, ReclaimableBytes: t.ReclaimableBytes(),
		InUseRecords: t.InUseRecords, InUseBytes: t.InUseBytes,
	}
	if !t.OldestUse.IsZero() {
		out.OldestUseTime = timestamppb.New(t.OldestUse)
	}
	return out
}

// ListRecords implements the RPC.
func (s *Server) ListRecords(ctx context.Context, req *cachemanagerv1.ListRecordsRequest) (*cachemanagerv1.ListRecordsResponse, error) {
	filter, err := recordSchema.Filter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	less, err := sorter(req.GetOrderBy())
	if err != nil {
		return nil, err
	}
	list, err := s.opts.Pages.Query(ctx, req)
	if err != nil {
		return nil, err
	}
	var last *recordPlace
	if err := list.Read(&last); err != nil {
		return nil, err
	}
	listings, missed, err := s.opts.Engine.List(ctx, refsOf(req.GetCaches()))
	if err != nil {
		return nil, err
	}
	var all []*cachemanagerv1.Record
	for _, l := range listings {
		for _, r := range l.Records {
			if record := wire.RecordProto(l.Cache, r); aip.Fits(filter, recordFields(record, s.opts.Now())) {
				all = append(all, record)
			}
		}
	}
	order := func(a *cachemanagerv1.Record, b recordPlace) int {
		return cmp.Or(less(a, b.record()), recordPlaceOf(a).compare(b))
	}
	slices.SortFunc(all, func(a, b *cachemanagerv1.Record) int {
		return cmp.Or(less(a, b), recordPlaceOf(a).compare(recordPlaceOf(b)))
	})
	from := 0
	if last != nil {
		from = aip.After(all, *last, order)
	}
	res := &cachemanagerv1.ListRecordsResponse{}
	for _, m := range missed {
		res.Missed = append(res.Missed, wire.MissedProto(m))
	}
	var next int
	if !req.GetWithVerdicts() {
		res.Records, next = aip.Page(aip.NewRoom(req.GetPageSize(), res), all, from, same)
	} else if next, err = s.withVerdicts(ctx, req, res, all, from); err != nil {
		return nil, err
	}
	if next > 0 {
		res.NextPageToken = list.Token(recordPlaceOf(all[next-1]))
	}
	return res, nil
}

func same[T any](one T) T { return one }

// withVerdicts fills a page with records and what the policy has in mind for each, and
// returns the offset of the next page.
func (s *Server) withVerdicts(
	ctx context.Context, req *cachemanagerv1.ListRecordsRequest, res *cachemanagerv1.ListRecordsResponse,
	all []*cachemanagerv1.Record, from int,
) (next int, _ error) {
	p, err := s.opts.Engine.Plan(ctx, planAsk(req.GetCaches()))
	if err != nil {
		return 0, err
	}
	type name struct {
		cache cache.Ref
		id    string
	}
	verdicts := make(map[name]*plan.Verdict, len(p.Verdicts))
	for i := range p.Verdicts {
		v := &p.Verdicts[i]
		verdicts[name{v.Cache, v.Record.ID}] = v
	}
	room := aip.NewRoom(req.GetPageSize(), res)
	from = min(from, len(all))
	for n, r := range all[from:] {
		// One that is gone between the two listings has no verdict.
		verdict := &cachemanagerv1.Verdict{Record: r, Reason: cachemanagerv1.VerdictReason_VERDICT_REASON_GONE}
		if v := verdicts[name{wire.Ref(r.GetCache()), r.GetId()}]; v != nil {
			verdict = wire.VerdictProto(*v)
		}
		if !room.Take(r, verdict) {
			return from + n, nil
		}
		res.Records, res.Verdicts = append(res.Records, r), append(res.Verdicts, verdict)
	}
	return 0, nil
}
