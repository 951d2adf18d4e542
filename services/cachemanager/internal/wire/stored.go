package wire

import (
	"google.golang.org/protobuf/proto"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

// What is stored is messages of the contract.

// EncodePolicy writes a policy as it is stored.
func EncodePolicy(p policy.Policy) ([]byte, error) { return encode(PolicyProto(p)) }

// DecodePolicy reads what EncodePolicy wrote.
func DecodePolicy(body []byte) (policy.Policy, error) {
	in := &cachemanagerv1.Policy{}
	if err := proto.Unmarshal(body, in); err != nil {
		return policy.Policy{}, err
	}
	return Policy(in)
}

// EncodePin writes a pin as it is stored. Equal pins have equal bytes.
func EncodePin(p policy.Pin) ([]byte, error) { return encode(PinProto(p)) }

// DecodePin reads what EncodePin wrote.
func DecodePin(body []byte) (policy.Pin, error) {
	in := &cachemanagerv1.Pin{}
	if err := proto.Unmarshal(body, in); err != nil {
		return policy.Pin{}, err
	}
	return Pin(in)
}

// EncodeRun writes a run as it is stored.
func EncodeRun(r run.Run) ([]byte, error) { return encode(RunProto(r)) }

// DecodeRun reads what EncodeRun wrote.
func DecodeRun(body []byte) (run.Run, error) {
	in := &cachemanagerv1.Run{}
	if err := proto.Unmarshal(body, in); err != nil {
		return run.Run{}, err
	}
	return Run(in), nil
}

// EncodeVerdict writes a verdict as it is stored.
func EncodeVerdict(v plan.Verdict) ([]byte, error) { return encode(VerdictProto(v)) }

// DecodeVerdict reads what EncodeVerdict wrote.
func DecodeVerdict(body []byte) (plan.Verdict, error) {
	in := &cachemanagerv1.Verdict{}
	if err := proto.Unmarshal(body, in); err != nil {
		return plan.Verdict{}, err
	}
	return Verdict(in), nil
}

func encode(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}
