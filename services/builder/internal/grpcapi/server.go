// Package grpcapi serves the Build API: it translates between the contract and
// the domain, and decides nothing.
package grpcapi

import (
	"context"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/pagetoken"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/pool"
	"github.com/kilnbuild/kiln/services/builder/internal/wire"
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
	contexts  Contexts
	artifacts Artifacts
	pages     *pagetoken.Tokens
}

// NewServer returns a server of the builds that the service takes. pages seals the tokens
// of its lists.
func NewServer(
	builds *build.Service, fleet Fleet, translate Translator, contexts Contexts, artifacts Artifacts, pages *pagetoken.Tokens,
) *Server {
	return &Server{builds: builds, fleet: fleet, translate: translate, contexts: contexts, artifacts: artifacts, pages: pages}
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
	ctx := stream.Context()
	sub, err := s.submission(ctx, req.GetSpec(), req.GetRequestId())
	if err != nil {
		return err
	}
	return follow(stream, func(ctx context.Context, emit func(build.Frame) error) error {
		return s.builds.Build(ctx, sub, emit)
	})
}

// StartBuild implements the RPC.
func (s *Server) StartBuild(ctx context.Context, req *builderv1.StartBuildRequest) (*builderv1.StartBuildResponse, error) {
	sub, err := s.submission(ctx, req.GetSpec(), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	sub.Detached = true
	rec, err := s.builds.Start(ctx, sub)
	if err != nil {
		return nil, err
	}
	return &builderv1.StartBuildResponse{Build: wire.Record(rec)}, nil
}

// WatchBuild implements the RPC.
func (s *Server) WatchBuild(req *builderv1.WatchBuildRequest, stream builderv1.BuilderService_WatchBuildServer) error {
	if _, err := s.get(stream.Context(), req.GetBuildId()); err != nil {
		return err
	}
	return follow(stream, func(ctx context.Context, emit func(build.Frame) error) error {
		return s.builds.Watch(ctx, req.GetBuildId(), req.GetFromSequence(), emit)
	})
}

// CancelBuild implements the RPC.
func (s *Server) CancelBuild(ctx context.Context, req *builderv1.CancelBuildRequest) (*builderv1.CancelBuildResponse, error) {
	if _, err := s.get(ctx, req.GetBuildId()); err != nil {
		return nil, err
	}
	rec, err := s.builds.Cancel(ctx, req.GetBuildId())
	if err != nil {
		return nil, err
	}
	return &builderv1.CancelBuildResponse{Build: wire.Record(rec)}, nil
}

// RetryBuild implements the RPC.
func (s *Server) RetryBuild(ctx context.Context, req *builderv1.RetryBuildRequest) (*builderv1.RetryBuildResponse, error) {
	if _, err := s.get(ctx, req.GetBuildId()); err != nil {
		return nil, err
	}
	_, stored, err := s.builds.Request(ctx, req.GetBuildId())
	if err != nil {
		return nil, err
	}
	spec, err := withSecrets(stored, req.GetSecrets(), req.GetSshKeys())
	if err != nil {
		return nil, err
	}
	sub, err := s.submission(ctx, spec, req.GetRequestId())
	if err != nil {
		return nil, err
	}
	sub.Detached, sub.RetryOf = true, req.GetBuildId()
	rec, err := s.builds.Start(ctx, sub)
	if err != nil {
		return nil, err
	}
	return &builderv1.RetryBuildResponse{Build: wire.Record(rec)}, nil
}

// GetBuild implements the RPC.
func (s *Server) GetBuild(ctx context.Context, req *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
	rec, err := s.get(ctx, req.GetBuildId())
	if err != nil {
		return nil, err
	}
	return &builderv1.GetBuildResponse{Build: wire.Record(rec)}, nil
}

// ListDaemons implements the RPC.
func (s *Server) ListDaemons(context.Context, *builderv1.ListDaemonsRequest) (*builderv1.ListDaemonsResponse, error) {
	res := &builderv1.ListDaemonsResponse{}
	for _, status := range s.fleet.Statuses() {
		daemon := &builderv1.Daemon{
			Name: status.Name, Address: status.Address, State: builderv1.DaemonState_DAEMON_STATE_READY,
			Platforms: status.Info.Platforms, Version: status.Info.Version,
			RunningBuilds: int32(s.builds.Running(status.Name)), //nolint:gosec // bounded by max_running_builds
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
