package grpcapi

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// GetPolicy implements the RPC.
func (s *Server) GetPolicy(ctx context.Context, req *janitorv1.GetPolicyRequest) (*janitorv1.GetPolicyResponse, error) {
	p, err := s.State.PolicyVersion(ctx, req.GetVersion())
	if err != nil {
		return nil, err
	}
	return &janitorv1.GetPolicyResponse{Policy: wire.PolicyProto(p)}, nil
}

// UpdatePolicy implements the RPC.
func (s *Server) UpdatePolicy(ctx context.Context, req *janitorv1.UpdatePolicyRequest) (*janitorv1.UpdatePolicyResponse, error) {
	var p policy.Policy
	var err error
	if text, ok := req.GetSource().(*janitorv1.UpdatePolicyRequest_Text); ok {
		p, err = wire.ReadPolicy("text", text.Text)
	} else {
		p = wire.Policy(req.GetPolicy())
	}
	if err != nil {
		return nil, err
	}
	p, err = policy.Update(ctx, s.State, policy.Change{
		Policy: p, Expected: req.GetExpectedVersion(), Dry: req.GetValidateOnly(), Force: req.GetForce(), Caller: caller(ctx),
	}, s.Now())
	if err != nil {
		return nil, err
	}
	return &janitorv1.UpdatePolicyResponse{Policy: wire.PolicyProto(p)}, nil
}

// GetSchedule implements the RPC.
func (s *Server) GetSchedule(context.Context, *janitorv1.GetScheduleRequest) (*janitorv1.GetScheduleResponse, error) {
	at := s.Schedule.Status()
	res := &janitorv1.GetScheduleResponse{
		Enabled: at.Cron != "", Cron: at.Cron, TimeZone: at.TimeZone, Jitter: durationpb.New(at.Jitter), Running: s.Engine.Running(), LastRun: at.Last, Message: at.Message,
	}
	if !at.Next.IsZero() {
		res.NextRunTime = timestamppb.New(at.Next)
	}
	return res, nil
}
