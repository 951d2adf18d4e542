// Package wire translates between the contract and the domain.
package wire

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

var kinds = map[janitorv1.ManifestKind]content.Kind{
	janitorv1.ManifestKind_MANIFEST_KIND_IMAGE: content.Image, janitorv1.ManifestKind_MANIFEST_KIND_INDEX: content.Index,
	janitorv1.ManifestKind_MANIFEST_KIND_CACHE: content.Cache, janitorv1.ManifestKind_MANIFEST_KIND_REFERRER: content.Referrer,
	janitorv1.ManifestKind_MANIFEST_KIND_ARTIFACT: content.Artifact,
}

func kindProto(k content.Kind) janitorv1.ManifestKind {
	for proto, kind := range kinds {
		if kind == k {
			return proto
		}
	}
	return janitorv1.ManifestKind_MANIFEST_KIND_UNSPECIFIED
}

// Policy reads a policy; what is unset gets its default. policy.Resolve finds what does
// not hold.
func Policy(in *janitorv1.Policy) policy.Policy {
	out := policy.Policy{
		Version: in.GetVersion(), Updated: timeOf(in.GetUpdateTime()), UpdatedBy: in.GetUpdatedBy(), Comment: in.GetComment(), MaxBytes: in.MaxBytes,
		BlobGrace: spanOr(in.GetBlobGrace(), policy.DefaultBlobGrace), Quarantine: spanOr(in.GetQuarantine(), policy.DefaultQuarantine),
		UploadAge: spanOr(in.GetUploadAge(), policy.DefaultUploadAge), MaxBuildTime: spanOr(in.GetMaxBuildTime(), policy.DefaultMaxBuildTime),
	}
	if b := in.GetBudget(); b != nil {
		out.Budget = Budget(b)
	}
	for _, r := range in.GetRules() {
		out.Rules = append(out.Rules, policy.Rule{
			Name: r.GetName(), Match: match(r.GetMatch()), Keep: keep(r.GetKeep()), Protect: r.GetProtect(), Disabled: r.GetDisabled(),
		})
	}
	return out
}

func match(in *janitorv1.Match) *policy.Match {
	if in == nil {
		return nil
	}
	out := &policy.Match{Repositories: policy.Globs(in.GetRepositories()...), Tags: policy.Globs(in.GetTags()...)}
	for _, d := range in.GetDigests() {
		out.Digests = append(out.Digests, content.Digest(d))
	}
	switch in.GetTagging() {
	case janitorv1.Tagging_TAGGING_TAGGED:
		out.Tagging = policy.Tagged
	case janitorv1.Tagging_TAGGING_UNTAGGED:
		out.Tagging = policy.Untagged
	case janitorv1.Tagging_TAGGING_UNSPECIFIED:
	}
	for _, k := range in.GetKinds() {
		out.Kinds = append(out.Kinds, kinds[k])
	}
	return out
}

func keep(in *janitorv1.Keep) *policy.Keep {
	if in == nil {
		return nil
	}
	return &policy.Keep{
		Age: spanOf(in.GetAge()), PushAge: spanOf(in.GetPushAge()), CreateAge: spanOf(in.GetCreateAge()),
		NewestByPush: count(in.NewestByPush), NewestByPull: count(in.NewestByPull), Bytes: in.Bytes, DropEmpty: in.GetDropEmptyRepositories(),
	}
}

func count(in *int32) *int {
	if in == nil {
		return nil
	}
	n := int(*in)
	return &n
}

func spanOf(in *durationpb.Duration) *time.Duration {
	if in == nil {
		return nil
	}
	d := in.AsDuration()
	return &d
}

func spanOr(in *durationpb.Duration, otherwise time.Duration) time.Duration {
	if in == nil {
		return otherwise
	}
	return in.AsDuration()
}

func timeOf(in *timestamppb.Timestamp) time.Time {
	if in == nil {
		return time.Time{}
	}
	return in.AsTime()
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
