package wire

import (
	"fmt"
	"strings"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/rpc"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
)

const (
	statePrefix   = "RUN_STATE_"
	triggerPrefix = "RUN_TRIGGER_"
)

// RunProto writes a run.
func RunProto(r run.Run) *cachemanagerv1.Run {
	out := &cachemanagerv1.Run{
		Id: r.ID, State: cachemanagerv1.RunState(cachemanagerv1.RunState_value[statePrefix+string(r.State)]),
		Trigger:   cachemanagerv1.RunTrigger(cachemanagerv1.RunTrigger_value[triggerPrefix+string(r.Trigger)]),
		StartTime: stamp(r.Started), EndTime: stamp(r.Ended), DryRun: r.Dry, PolicyVersion: r.PolicyVersion, PlanDigest: r.PlanDigest,
		Predicted: AmountProto(r.Predicted), Removed: AmountProto(r.Removed), Rules: rulesProto(r.Rules), Error: statusProto(r.Err),
		Caller: r.Caller, TraceId: r.TraceID, RequestId: r.RequestID,
		HeldPolicyVersion: r.Held, Folded: r.Folded, FoldedStartTime: stamp(r.FoldedSince),
	}
	for _, c := range r.Caches {
		out.Caches = append(out.Caches, &cachemanagerv1.CacheRun{
			Cache: RefProto(c.Cache), State: cachemanagerv1.RunState(cachemanagerv1.RunState_value[statePrefix+string(c.State)]), Error: statusProto(c.Err),
			BeforeBytes: c.Before, AfterBytes: c.After, Predicted: AmountProto(c.Predicted), Removed: AmountProto(c.Removed),
			UnreadableRecords: c.Unreadable,
		})
	}
	return out
}

// Run reads a run that was stored.
func Run(in *cachemanagerv1.Run) run.Run {
	out := run.Run{
		ID: in.GetId(), State: stateOf(in.GetState()), Trigger: run.Trigger(word(in.GetTrigger(), triggerPrefix)), Started: timeOf(in.GetStartTime()),
		Ended: timeOf(in.GetEndTime()), Dry: in.GetDryRun(), PolicyVersion: in.GetPolicyVersion(), PlanDigest: in.GetPlanDigest(),
		Predicted: amount(in.GetPredicted()), Removed: amount(in.GetRemoved()), Err: errorOf(in.GetError()), Caller: in.GetCaller(),
		TraceID: in.GetTraceId(), RequestID: in.GetRequestId(),
		Held: in.GetHeldPolicyVersion(), Folded: in.GetFolded(), FoldedSince: timeOf(in.GetFoldedStartTime()),
	}
	for _, r := range in.GetRules() {
		out.Rules = append(out.Rules, plan.RuleAmount{Rule: r.GetRule(), Amount: amount(r.GetAmount())})
	}
	for _, c := range in.GetCaches() {
		out.Caches = append(out.Caches, run.OfCache{
			Cache: Ref(c.GetCache()), State: stateOf(c.GetState()), Err: errorOf(c.GetError()), Before: c.GetBeforeBytes(), After: c.GetAfterBytes(),
			Predicted: amount(c.GetPredicted()), Removed: amount(c.GetRemoved()),
			Unreadable: c.GetUnreadableRecords(),
		})
	}
	return out
}

func stateOf(in cachemanagerv1.RunState) run.State { return run.State(word(in, statePrefix)) }

// word is the name of an enum's value without its prefix. A value of a later version, which has no
// name here, is UNSPECIFIED.
func word(value fmt.Stringer, prefix string) string {
	if name, known := strings.CutPrefix(value.String(), prefix); known {
		return name
	}
	return "UNSPECIFIED"
}

// MissedProto writes a cache that could not be reached.
func MissedProto(m run.Missed) *cachemanagerv1.MissedCache {
	return &cachemanagerv1.MissedCache{Cache: RefProto(m.Cache), Error: rpc.Status(m.Err).Proto()}
}

// PlanProto writes a plan without its verdicts.
func PlanProto(p run.Plan) *cachemanagerv1.Plan {
	out := &cachemanagerv1.Plan{
		Digest: p.Digest, CreateTime: stamp(p.Created), ExpireTime: stamp(p.Expires), PolicyVersion: p.PolicyVersion,
		Remove: AmountProto(p.Removes), RemoveTied: AmountProto(p.Tied), Keep: AmountProto(p.Keeps), Rules: rulesProto(p.Rules), RemovesAll: p.RemovesAll,
	}
	if p.Hypothetical {
		out.ExpireTime = nil
	}
	for _, r := range p.Rooms {
		out.Rooms = append(out.Rooms, &cachemanagerv1.Room{Cache: RefProto(r.Cache), Rule: r.Rule, LowBytes: r.LowBytes, HighBytes: r.HighBytes})
	}
	for _, m := range p.Missed {
		out.Missed = append(out.Missed, MissedProto(m))
	}
	return out
}

func statusProto(err error) *statuspb.Status {
	if err == nil {
		return nil
	}
	return rpc.Status(err).Proto()
}

// errorOf reads an error that was stored.
func errorOf(in *statuspb.Status) error { return status.ErrorProto(in) }
