package wire

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// PolicyProto writes a policy.
func PolicyProto(p policy.Policy) *janitorv1.Policy {
	out := &janitorv1.Policy{
		Version: p.Version, UpdateTime: stamp(p.Updated), UpdatedBy: p.UpdatedBy, Comment: p.Comment, MaxBytes: p.MaxBytes,
		BlobGrace: durationpb.New(p.BlobGrace), Quarantine: durationpb.New(p.Quarantine), UploadAge: durationpb.New(p.UploadAge),
		MaxBuildTime: durationpb.New(p.MaxBuildTime),
	}
	if b := p.Budget; b != (policy.Budget{}) {
		out.Budget = &janitorv1.Budget{Manifests: b.Manifests, Bytes: b.Bytes}
		if b.Time > 0 {
			out.Budget.Time = durationpb.New(b.Time)
		}
	}
	for _, r := range p.Rules {
		out.Rules = append(out.Rules, &janitorv1.Rule{Name: r.Name, Match: matchProto(r.Match), Keep: keepProto(r.Keep), Protect: r.Protect, Disabled: r.Disabled})
	}
	return out
}

// Budget reads the bounds of a run.
func Budget(in *janitorv1.Budget) policy.Budget {
	return policy.Budget{Time: in.GetTime().AsDuration(), Manifests: in.Manifests, Bytes: in.Bytes}
}

func matchProto(m *policy.Match) *janitorv1.Match {
	if m == nil {
		return nil
	}
	out := &janitorv1.Match{Tagging: janitorv1.Tagging(m.Tagging)} //nolint:gosec // they are the same
	for _, g := range m.Repositories {
		out.Repositories = append(out.Repositories, g.String())
	}
	for _, g := range m.Tags {
		out.Tags = append(out.Tags, g.String())
	}
	for _, d := range m.Digests {
		out.Digests = append(out.Digests, string(d))
	}
	for _, k := range m.Kinds {
		out.Kinds = append(out.Kinds, kindProto(k))
	}
	return out
}

func keepProto(k *policy.Keep) *janitorv1.Keep {
	if k == nil {
		return nil
	}
	return &janitorv1.Keep{
		Age: spanProto(k.Age), PushAge: spanProto(k.PushAge), CreateAge: spanProto(k.CreateAge), NewestByPush: countProto(k.NewestByPush),
		NewestByPull: countProto(k.NewestByPull), Bytes: k.Bytes, DropEmptyRepositories: k.DropEmpty,
	}
}

func spanProto(d *time.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(*d)
}

func countProto(n *int) *int32 {
	if n == nil {
		return nil
	}
	out := int32(*n) //nolint:gosec // it was one
	return &out
}

// EncodePolicy writes a policy as it is stored.
func EncodePolicy(p policy.Policy) ([]byte, error) { return encode(PolicyProto(p)) }

// DecodePolicy reads what EncodePolicy wrote.
func DecodePolicy(body []byte) (policy.Policy, error) {
	in := &janitorv1.Policy{}
	err := proto.Unmarshal(body, in)
	return Policy(in), err
}
