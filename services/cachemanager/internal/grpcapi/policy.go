package grpcapi

import (
	"context"
	"errors"

	"github.com/kilnbuild/kiln/pkg/config"
	"github.com/kilnbuild/kiln/pkg/fault"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// GetPolicy implements the RPC.
func (s *Server) GetPolicy(ctx context.Context, req *cachemanagerv1.GetPolicyRequest) (*cachemanagerv1.GetPolicyResponse, error) {
	p, err := s.opts.State.PolicyVersion(ctx, req.GetVersion())
	if err != nil {
		return nil, err
	}
	return &cachemanagerv1.GetPolicyResponse{Policy: wire.PolicyProto(p)}, nil
}

// UpdatePolicy implements the RPC.
func (s *Server) UpdatePolicy(ctx context.Context, req *cachemanagerv1.UpdatePolicyRequest) (*cachemanagerv1.UpdatePolicyResponse, error) {
	in, place := req.GetPolicy(), func(path string) string { return "" }
	if text, ok := req.GetSource().(*cachemanagerv1.UpdatePolicyRequest_Text); ok {
		var err error
		if in, place, err = readPolicy(text.Text); err != nil {
			return nil, err
		}
	}
	p, err := wire.Policy(in)
	if err == nil {
		p, err = policy.Update(ctx, s.opts.State, policy.Change{
			Policy: p, Expected: req.GetExpectedVersion(), Dry: req.GetValidateOnly(), Force: req.GetForce(), Caller: caller(ctx),
		}, s.opts.Now())
	}
	if err != nil {
		return nil, placed(err, place)
	}
	return &cachemanagerv1.UpdatePolicyResponse{Policy: wire.PolicyProto(p)}, nil
}

// readPolicy reads a policy as text, and tells where in it a field stands.
func readPolicy(text string) (_ *cachemanagerv1.Policy, place func(path string) string, _ error) {
	in := &cachemanagerv1.Policy{}
	doc, err := config.Decode("text", text, in)
	if err != nil {
		return nil, nil, fault.Invalid("text", "", err.Error(), "mend what stands at these lines and columns; docs/guides/operator.md has examples")
	}
	return in, doc.Place, nil
}

// placed says of a fault in a policy that came as text where in it that is.
func placed(err error, place func(path string) string) error {
	wrong, ok := errors.AsType[*fault.Error](err)
	if !ok || wrong.Kind != fault.InvalidArgument {
		return err
	}
	at := place(wrong.Field)
	if at == "" {
		return err
	}
	out := *wrong
	out.Message = at + ": " + wrong.Field + ": " + wrong.Message
	out.Field = "text"
	return &out
}
