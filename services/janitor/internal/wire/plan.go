package wire

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// Bounds of what a plan tells.
const (
	maxRepositories = 1000
	maxWarnings     = 100
)

const (
	itemPrefix   = "ITEM_KIND_"
	reasonPrefix = "VERDICT_REASON_"
)

// PlanProto writes a plan without its verdicts.
func PlanProto(p run.Plan) *janitorv1.Plan {
	out := &janitorv1.Plan{
		Digest: p.Digest, CreateTime: stamp(p.Created), ExpireTime: stamp(p.Expires), PolicyVersion: p.PolicyVersion,
		Remove: AmountProto(p.Removes), Keep: AmountProto(p.Keeps), RemovesAll: p.RemovesAll, Reach: reachProto(p.Reach),
		WalkTime: durationpb.New(p.Looked.Walk), ParseTime: durationpb.New(p.Looked.Parse), LinkTime: durationpb.New(p.Looked.Links), PlanTime: durationpb.New(p.Took),
		Repositories: repositories(p), Rules: RulesProto(p.Rules), Warnings: p.Warnings[:min(len(p.Warnings), maxWarnings)],
	}
	if p.Hypothetical {
		out.ExpireTime = nil
	}
	return out
}

// AmountProto writes manifests, blobs and their bytes.
func AmountProto(a plan.Amount) *janitorv1.Amount {
	return &janitorv1.Amount{Manifests: a.Manifests, Blobs: a.Blobs, SizeBytes: a.Bytes, Uploads: a.Uploads}
}

// repositories is what goes from each repository, the most bytes first.
func repositories(p run.Plan) []*janitorv1.RepositoryAmount {
	byName := map[string]*janitorv1.RepositoryAmount{}
	var all []*janitorv1.RepositoryAmount
	for _, v := range p.Verdicts {
		if !v.Remove || v.Repository == "" {
			continue
		}
		of := byName[v.Repository]
		if of == nil {
			of = &janitorv1.RepositoryAmount{Repository: v.Repository, Amount: &janitorv1.Amount{}}
			byName[v.Repository] = of
			all = append(all, of)
		}
		a := v.Amount()
		of.Amount.Manifests += a.Manifests
		of.Amount.Blobs += a.Blobs
		of.Amount.SizeBytes += a.Bytes
		of.Amount.Uploads += a.Uploads
	}
	slices.SortStableFunc(all, func(a, b *janitorv1.RepositoryAmount) int {
		return cmp.Or(cmp.Compare(b.GetAmount().GetSizeBytes(), a.GetAmount().GetSizeBytes()), strings.Compare(a.GetRepository(), b.GetRepository()))
	})
	return all[:min(len(all), maxRepositories)]
}

// VerdictProto writes a verdict.
func VerdictProto(v plan.Verdict) *janitorv1.Verdict {
	out := &janitorv1.Verdict{
		Item: &janitorv1.Item{
			Repository: v.Repository, Kind: janitorv1.ItemKind(janitorv1.ItemKind_value[itemPrefix+strings.ToUpper(string(v.Kind))]), Digest: v.Digest, Tags: v.Tags,
			ManifestKind: kindProto(v.Of), SizeBytes: v.Bytes, PushTime: stamp(v.Pushed), PullTime: stamp(v.Pulled),
		},
		Action: janitorv1.VerdictAction_VERDICT_ACTION_KEEP, Rule: v.Rule, Explanation: v.Explain, Order: v.Order, FreesBytes: v.Frees, KeptBy: v.KeptBy,
		Reason: janitorv1.VerdictReason(janitorv1.VerdictReason_value[reasonPrefix+strings.ToUpper(string(v.Reason))]), Age: durationpb.New(v.Age),
	}
	if v.Remove {
		out.Action = janitorv1.VerdictAction_VERDICT_ACTION_REMOVE
	}
	return out
}
