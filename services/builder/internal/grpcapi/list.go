package grpcapi

import (
	"context"
	"strings"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/pkg/auth"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/filter"
	"github.com/kilnbuild/kiln/services/builder/internal/wire"
)

// ListBuilds implements the RPC.
func (s *Server) ListBuilds(ctx context.Context, req *builderv1.ListBuildsRequest) (*builderv1.ListBuildsResponse, error) {
	query, err := queryOf(ctx, req)
	if err != nil {
		return nil, err
	}
	list, err := s.pages.Query(ctx, req)
	if err != nil {
		return nil, err
	}
	var at string // the store's own token
	if err := list.Read(&at); err != nil {
		return nil, err
	}
	room := aip.NewRoom(req.GetPageSize())
	query.Fits = func(summary build.Record) bool { return room.Take(wire.Record(summary)) }
	records, next, err := s.builds.List(ctx, query, aip.PageSize(req.GetPageSize()), at)
	if err != nil {
		return nil, err
	}
	res := &builderv1.ListBuildsResponse{Builds: make([]*builderv1.BuildRecord, 0, len(records))}
	for _, rec := range records {
		res.Builds = append(res.Builds, wire.Record(rec))
	}
	if next != "" {
		res.NextPageToken = list.Token(next)
	}
	return res, nil
}

// queryOf reads what a caller wants to list, within what it may see: the store never
// looks at other builds, so that neither pages nor tokens tell of them.
func queryOf(ctx context.Context, req *builderv1.ListBuildsRequest) (build.Query, error) {
	var query build.Query
	wanted, err := filter.Parse(req.GetFilter())
	if err != nil {
		return query, err
	}
	if query.Order, err = filter.ParseOrder(req.GetOrderBy()); err != nil {
		return query, err
	}
	var all aip.And
	if granted, bounded := grantedProjects(ctx); bounded {
		all = append(all, granted)
	}
	if wanted != nil {
		all = append(all, wanted)
	}
	if len(all) > 0 {
		query.Filter = all
	}
	return query, nil
}

// grantedProjects returns the condition that a build is of a project that the caller's
// rules allow, and false when they allow all.
func grantedProjects(ctx context.Context) (granted aip.Or, bounded bool) {
	patterns, bounded := auth.GrantOf(ctx).Projects()
	for _, pattern := range patterns {
		one := aip.Compare{Field: build.FieldProject, Op: aip.Equal, Value: pattern}
		if prefix, wildcard := strings.CutSuffix(pattern, "*"); wildcard {
			one.Op, one.Value = aip.HasPrefix, prefix
		}
		granted = append(granted, one)
	}
	return granted, bounded
}
