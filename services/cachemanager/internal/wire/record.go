package wire

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
)

// types are the types of records by the contract's.
var types = map[cachemanagerv1.RecordType]cache.Type{
	cachemanagerv1.RecordType_RECORD_TYPE_REGULAR:             cache.Regular,
	cachemanagerv1.RecordType_RECORD_TYPE_SOURCE_LOCAL:        cache.SourceLocal,
	cachemanagerv1.RecordType_RECORD_TYPE_SOURCE_GIT_CHECKOUT: cache.GitCheckout,
	cachemanagerv1.RecordType_RECORD_TYPE_EXEC_CACHE_MOUNT:    cache.CacheMount,
	cachemanagerv1.RecordType_RECORD_TYPE_FRONTEND:            cache.Frontend,
	cachemanagerv1.RecordType_RECORD_TYPE_INTERNAL:            cache.Internal,
	cachemanagerv1.RecordType_RECORD_TYPE_LOCAL_TAG:           cache.LocalTag,
	cachemanagerv1.RecordType_RECORD_TYPE_HISTORY:             cache.History,
	cachemanagerv1.RecordType_RECORD_TYPE_UNCOUNTED:           cache.Uncounted,
}

// TypeOf reads a type of record.
func TypeOf(in cachemanagerv1.RecordType) cache.Type {
	if t, ok := types[in]; ok {
		return t
	}
	return cache.Unknown
}

// TypeProto writes a type of record.
func TypeProto(in cache.Type) cachemanagerv1.RecordType {
	for proto, t := range types {
		if t == in {
			return proto
		}
	}
	return cachemanagerv1.RecordType_RECORD_TYPE_UNSPECIFIED
}

// RecordProto writes a record of a cache.
func RecordProto(ref cache.Ref, r cache.Record) *cachemanagerv1.Record {
	return &cachemanagerv1.Record{
		Cache: RefProto(ref), Id: r.ID, Type: TypeProto(r.Type), Description: r.Description, SizeBytes: max(r.Bytes, 0), Parents: r.Parents,
		Mutable: r.Mutable, InUse: r.InUse, Shared: r.Shared, CreateTime: stamp(r.Created), LastUseTime: stamp(r.LastUsed),
		UsageCount: int64(r.UsageCount), Projects: r.Projects, Images: r.Images, Revision: r.Revision,
	}
}

// record reads a record that was stored.
func record(in *cachemanagerv1.Record) cache.Record {
	return cache.Record{
		ID: in.GetId(), Type: TypeOf(in.GetType()), Description: in.GetDescription(), Bytes: in.GetSizeBytes(), Parents: in.GetParents(),
		Mutable: in.GetMutable(), InUse: in.GetInUse(), Shared: in.GetShared(), Created: timeOf(in.GetCreateTime()), LastUsed: timeOf(in.GetLastUseTime()),
		UsageCount: int(in.GetUsageCount()), Projects: in.GetProjects(), Images: in.GetImages(), Revision: in.GetRevision(),
	}
}

// reasons are the reasons of verdicts by the contract's.
var reasons = map[cachemanagerv1.VerdictReason]plan.Reason{
	cachemanagerv1.VerdictReason_VERDICT_REASON_AGE:           plan.Age,
	cachemanagerv1.VerdictReason_VERDICT_REASON_BYTES:         plan.Bytes,
	cachemanagerv1.VerdictReason_VERDICT_REASON_RECORDS:       plan.Records,
	cachemanagerv1.VerdictReason_VERDICT_REASON_FREE_DISK:     plan.FreeDisk,
	cachemanagerv1.VerdictReason_VERDICT_REASON_FAMILY:        plan.Family,
	cachemanagerv1.VerdictReason_VERDICT_REASON_WITHIN_BOUNDS: plan.WithinBounds,
	cachemanagerv1.VerdictReason_VERDICT_REASON_IN_USE:        plan.InUse,
	cachemanagerv1.VerdictReason_VERDICT_REASON_PINNED:        plan.Pinned,
	cachemanagerv1.VerdictReason_VERDICT_REASON_CHILD:         plan.Child,
	cachemanagerv1.VerdictReason_VERDICT_REASON_LEASED:        plan.Leased,
	cachemanagerv1.VerdictReason_VERDICT_REASON_PROTECTED:     plan.Protected,
	cachemanagerv1.VerdictReason_VERDICT_REASON_USED_SINCE:    plan.UsedSince,
	cachemanagerv1.VerdictReason_VERDICT_REASON_BUDGET:        plan.OverBudget,
	cachemanagerv1.VerdictReason_VERDICT_REASON_GONE:          plan.Gone,
	cachemanagerv1.VerdictReason_VERDICT_REASON_CLEANED:       plan.Cleaned,
	cachemanagerv1.VerdictReason_VERDICT_REASON_NO_HELP:       plan.NoHelp,
}

func reasonProto(in plan.Reason) cachemanagerv1.VerdictReason {
	for proto, r := range reasons {
		if r == in {
			return proto
		}
	}
	return cachemanagerv1.VerdictReason_VERDICT_REASON_UNSPECIFIED
}

// VerdictProto writes a verdict.
func VerdictProto(v plan.Verdict) *cachemanagerv1.Verdict {
	out := &cachemanagerv1.Verdict{
		Record: RecordProto(v.Cache, v.Record), Action: cachemanagerv1.VerdictAction_VERDICT_ACTION_KEEP, Rule: v.Rule, Reason: reasonProto(v.Reason),
		Explanation: v.Explain, Certainty: cachemanagerv1.Certainty_CERTAINTY_CERTAIN, TieGroup: v.Tie, Order: v.Order,
		Age: durationpb.New(max(v.Age, 0)), FreesBytes: v.Frees, KeptBy: v.KeptBy,
	}
	switch {
	case v.Remove:
		out.Action = cachemanagerv1.VerdictAction_VERDICT_ACTION_REMOVE
	case v.Shrink > 0:
		out.Action = cachemanagerv1.VerdictAction_VERDICT_ACTION_SHRINK
	}
	if v.Tie > 0 {
		out.Certainty = cachemanagerv1.Certainty_CERTAINTY_TIED
	}
	return out
}

// Verdict reads a verdict that was stored.
func Verdict(in *cachemanagerv1.Verdict) plan.Verdict {
	shrink := 0
	if in.GetAction() == cachemanagerv1.VerdictAction_VERDICT_ACTION_SHRINK {
		shrink = 1 // by how many layers is in its explanation
	}
	return plan.Verdict{
		Shrink: shrink,
		Cache:  Ref(in.GetRecord().GetCache()), Record: record(in.GetRecord()), Remove: in.GetAction() == cachemanagerv1.VerdictAction_VERDICT_ACTION_REMOVE,
		Rule: in.GetRule(), Reason: reasons[in.GetReason()], Order: in.GetOrder(), Age: in.GetAge().AsDuration().Round(time.Nanosecond),
		Frees: in.GetFreesBytes(), KeptBy: in.GetKeptBy(), Tie: in.GetTieGroup(), Explain: in.GetExplanation(),
	}
}

// AmountProto writes records and bytes.
func AmountProto(a plan.Amount) *cachemanagerv1.Amount {
	return &cachemanagerv1.Amount{Records: a.Records, SizeBytes: a.Bytes}
}

func amount(in *cachemanagerv1.Amount) plan.Amount {
	return plan.Amount{Records: in.GetRecords(), Bytes: in.GetSizeBytes()}
}

func rulesProto(in []plan.RuleAmount) (out []*cachemanagerv1.RuleAmount) {
	for _, r := range in {
		out = append(out, &cachemanagerv1.RuleAmount{Rule: r.Rule, Amount: AmountProto(r.Amount)})
	}
	return out
}
