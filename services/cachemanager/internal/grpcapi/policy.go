package grpcapi

import (
	"context"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// GetPolicy implements the RPC.
func (s *Server) GetPolicy(ctx context.Context, req *cachemanagerv1.GetPolicyRequest) (*cachemanagerv1.GetPolicyResponse, error) {
	p, err := s.opts.State.PolicyVersion(ctx, req.GetVersion())
	if err != nil {
		return nil, err
	}
	res := &cachemanagerv1.GetPolicyResponse{Policy: wire.PolicyProto(p)}
	if h := s.opts.Engine.Hold(); h != nil && h.Version == p.Version {
		res.Hold = holdProto(h)
	}
	return res, nil
}

func holdProto(h *enforce.Hold) *cachemanagerv1.PolicyHold {
	if h == nil {
		return nil
	}
	return &cachemanagerv1.PolicyHold{Version: h.Version, AppliedVersion: h.Applied, Message: h.Message}
}

// UpdatePolicy implements the RPC.
func (s *Server) UpdatePolicy(ctx context.Context, req *cachemanagerv1.UpdatePolicyRequest) (*cachemanagerv1.UpdatePolicyResponse, error) {
	var p policy.Policy
	var err error
	if text, ok := req.GetSource().(*cachemanagerv1.UpdatePolicyRequest_Text); ok {
		p, err = wire.ReadPolicy("text", text.Text)
	} else {
		p, err = wire.Policy(req.GetPolicy())
	}
	if err != nil {
		return nil, err
	}
	p, err = policy.Update(ctx, s.opts.State, policy.Change{
		Policy: p, Expected: req.GetExpectedVersion(), Dry: req.GetValidateOnly(), Force: req.GetForce(), Caller: caller(ctx),
	}, s.opts.Now())
	if err != nil {
		return nil, err
	}
	res := &cachemanagerv1.UpdatePolicyResponse{Policy: wire.PolicyProto(p)}
	if !req.GetForce() {
		hold := s.opts.Engine.Compare(ctx, p)
		if hold != nil && !req.GetValidateOnly() {
			s.opts.Engine.Held(ctx, hold)
		}
		res.Hold = holdProto(hold)
	}
	return res, nil
}
