// Package grpcapi serves the Build API: it translates between the contract and
// the domain, and decides nothing.
package grpcapi

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/pool"
)

// Fleet knows how the daemons are.
type Fleet interface {
	Statuses() []pool.Status
}

// Server serves kiln.builder.v1.BuilderService.
type Server struct {
	builderv1.UnimplementedBuilderServiceServer

	builds    *build.Service
	fleet     Fleet
	translate Translator
}

// NewServer returns a server of the builds that the service takes.
func NewServer(builds *build.Service, fleet Fleet, translate Translator) *Server {
	return &Server{builds: builds, fleet: fleet, translate: translate}
}

// Caller says who makes a call, and in which trace.
func Caller(ctx context.Context) build.Caller {
	caller := build.Caller{Identity: auth.FromContext(ctx).Name}
	if span := trace.SpanContextFromContext(ctx); span.HasTraceID() {
		caller.TraceID = span.TraceID().String()
	}
	return caller
}

// Build implements the RPC.
func (s *Server) Build(req *builderv1.BuildRequest, stream builderv1.BuilderService_BuildServer) error {
	if req.GetRequestId() != "" {
		return unserved("request_id", "leave request_id out; every call is then a new build")
	}
	spec, err := s.translate.Spec(req.GetSpec())
	if err != nil {
		return err
	}
	ctx := stream.Context()
	return s.builds.Build(ctx, spec, Caller(ctx), func(event build.Event) error {
		return stream.Send(&builderv1.BuildResponse{Event: eventToProto(event)})
	})
}

// GetBuild implements the RPC.
func (s *Server) GetBuild(_ context.Context, req *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
	rec, err := s.builds.Records().Get(req.GetBuildId())
	if err != nil {
		return nil, err
	}
	return &builderv1.GetBuildResponse{Build: recordToProto(rec)}, nil
}

// defaultPageSize is used when a request names none.
const defaultPageSize = 50

// ListBuilds implements the RPC.
func (s *Server) ListBuilds(_ context.Context, req *builderv1.ListBuildsRequest) (*builderv1.ListBuildsResponse, error) {
	if req.GetFilter() != "" {
		return nil, unserved("filter", "leave filter out, and choose among the builds that come")
	}
	size := int(req.GetPageSize())
	if size == 0 {
		size = defaultPageSize
	}
	records, next, err := s.builds.Records().List(size, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	res := &builderv1.ListBuildsResponse{NextPageToken: next, Builds: make([]*builderv1.BuildRecord, 0, len(records))}
	for _, rec := range records {
		res.Builds = append(res.Builds, recordToProto(rec))
	}
	return res, nil
}

// ListDaemons implements the RPC.
func (s *Server) ListDaemons(context.Context, *builderv1.ListDaemonsRequest) (*builderv1.ListDaemonsResponse, error) {
	res := &builderv1.ListDaemonsResponse{}
	for _, status := range s.fleet.Statuses() {
		daemon := &builderv1.Daemon{
			Name: status.Name, Address: status.Address, State: builderv1.DaemonState_DAEMON_STATE_READY,
			Platforms: status.Info.Platforms, Version: status.Info.Version,
			RunningBuilds: int32(s.builds.Records().Running(status.Name)), //nolint:gosec // bounded by max_running_builds
		}
		switch {
		case status.Checked.IsZero():
			daemon.State, daemon.Message = builderv1.DaemonState_DAEMON_STATE_UNAVAILABLE, "it was not asked yet"
		case status.Err != nil:
			daemon.State, daemon.Message = builderv1.DaemonState_DAEMON_STATE_UNAVAILABLE, status.Err.Error()
		}
		if !status.Checked.IsZero() {
			daemon.CheckTime = timestamppb.New(status.Checked)
		}
		res.Daemons = append(res.Daemons, daemon)
	}
	return res, nil
}

// unserved says that a field of the contract is not served yet.
func unserved(field, remedy string) error {
	err := fault.New(fault.Unimplemented, "UNIMPLEMENTED", fmt.Sprintf("field %q is not served yet", field), remedy)
	err.Field = field
	return err
}
