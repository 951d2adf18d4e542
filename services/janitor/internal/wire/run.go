package wire

import (
	"fmt"
	"strings"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/rpc"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// Values of enums are those of the domain behind these.
const (
	statePrefix   = "RUN_STATE_"
	triggerPrefix = "RUN_TRIGGER_"
	phasePrefix   = "RUN_PHASE_"
	reachPrefix   = "REACH_"
	defectPrefix  = "DEFECT_KIND_"
)

// RunProto writes a run.
func RunProto(r run.Run) *janitorv1.Run {
	out := &janitorv1.Run{
		Id: r.ID, State: janitorv1.RunState(janitorv1.RunState_value[statePrefix+string(r.State)]),
		Trigger:   janitorv1.RunTrigger(janitorv1.RunTrigger_value[triggerPrefix+string(r.Trigger)]),
		StartTime: stamp(r.Started), EndTime: stamp(r.Ended), DryRun: r.Dry, PolicyVersion: r.PolicyVersion, PlanDigest: r.PlanDigest,
		Predicted: AmountProto(r.Predicted), Removed: AmountProto(r.Removed), Waiting: AmountProto(r.Waiting), Rules: RulesProto(r.Rules), Error: statusProto(r.Err),
		Caller: r.Caller, TraceId: r.TraceID, RequestId: r.RequestID, Progress: ProgressProto(r.Progress), Reach: reachProto(r.Reach),
		Resumed: int32(r.Resumed), VerifiedManifests: r.Verified, BrokenManifests: r.Broken, //nolint:gosec // a small count
	}
	out.Folded = r.Folded
	for _, of := range r.Repositories {
		out.Repositories = append(out.Repositories, &janitorv1.RepositoryAmount{Repository: of.Repository, Amount: AmountProto(of.Amount)})
	}
	return out
}

// ProgressProto writes how far a run has come.
func ProgressProto(p run.Progress) *janitorv1.RunProgress {
	return &janitorv1.RunProgress{
		Phase: janitorv1.RunPhase(janitorv1.RunPhase_value[phasePrefix+string(p.Phase)]), Done: p.Done, Total: p.Total, PhaseStartTime: stamp(p.Began),
	}
}

// RulesProto writes what rules remove.
func RulesProto(rules []plan.RuleAmount) (all []*janitorv1.RuleAmount) {
	for _, r := range rules {
		all = append(all, &janitorv1.RuleAmount{Rule: r.Rule, Amount: AmountProto(r.Amount)})
	}
	return all
}

func reachProto(r run.Reach) janitorv1.Reach {
	return janitorv1.Reach(janitorv1.Reach_value[reachPrefix+string(r)])
}

// DefectProto writes something that is wrong in a registry.
func DefectProto(d run.Defect) *janitorv1.Defect {
	return &janitorv1.Defect{
		Repository: d.Repository, Kind: janitorv1.DefectKind(janitorv1.DefectKind_value[defectPrefix+string(d.Kind)]), Digest: d.Digest,
		References: d.References[:min(len(d.References), maxReferences)], Message: d.Message, Remedy: d.Remedy, MendedByRun: d.Mended,
	}
}

// maxReferences bounds the references of a defect.
const maxReferences = 100

func statusProto(err error) *statuspb.Status {
	if err == nil {
		return nil
	}
	return rpc.Status(err).Proto()
}

// Run reads a run that was stored.
func Run(in *janitorv1.Run) run.Run {
	out := run.Run{
		ID: in.GetId(), State: run.State(value(in.GetState(), statePrefix)), Trigger: run.Trigger(value(in.GetTrigger(), triggerPrefix)),
		Started: timeOf(in.GetStartTime()), Ended: timeOf(in.GetEndTime()), Dry: in.GetDryRun(), PolicyVersion: in.GetPolicyVersion(), PlanDigest: in.GetPlanDigest(),
		Predicted: amount(in.GetPredicted()), Removed: amount(in.GetRemoved()), Waiting: amount(in.GetWaiting()), Err: status.ErrorProto(in.GetError()),
		Caller: in.GetCaller(), TraceID: in.GetTraceId(), RequestID: in.GetRequestId(), Reach: run.Reach(value(in.GetReach(), reachPrefix)),
		Progress: run.Progress{
			Phase: run.Phase(value(in.GetProgress().GetPhase(), phasePrefix)), Done: in.GetProgress().GetDone(), Total: in.GetProgress().GetTotal(),
			Began: timeOf(in.GetProgress().GetPhaseStartTime()),
		},
		Resumed: int(in.GetResumed()), Verified: in.GetVerifiedManifests(), Broken: in.GetBrokenManifests(), Folded: in.GetFolded(),
	}
	for _, r := range in.GetRules() {
		out.Rules = append(out.Rules, plan.RuleAmount{Rule: r.GetRule(), Amount: amount(r.GetAmount())})
	}
	for _, r := range in.GetRepositories() {
		out.Repositories = append(out.Repositories, run.RepositoryAmount{Repository: r.GetRepository(), Amount: amount(r.GetAmount())})
	}
	return out
}

// value is the word of an enum, or the number of one that another version has stored.
func value(of fmt.Stringer, prefix string) string { return strings.TrimPrefix(of.String(), prefix) }

func amount(a *janitorv1.Amount) plan.Amount {
	return plan.Amount{Manifests: a.GetManifests(), Blobs: a.GetBlobs(), Bytes: a.GetSizeBytes(), Uploads: a.GetUploads()}
}

// Verdict reads a verdict that was stored.
func Verdict(in *janitorv1.Verdict) plan.Verdict {
	item := in.GetItem()
	return plan.Verdict{
		Repository: item.GetRepository(), Kind: plan.ItemKind(strings.ToLower(strings.TrimPrefix(item.GetKind().String(), itemPrefix))), Digest: item.GetDigest(),
		Tags: item.GetTags(), Of: kinds[item.GetManifestKind()], Bytes: item.GetSizeBytes(), Pushed: timeOf(item.GetPushTime()), Pulled: timeOf(item.GetPullTime()),
		Remove: in.GetAction() == janitorv1.VerdictAction_VERDICT_ACTION_REMOVE, Rule: in.GetRule(),
		Reason:  plan.Reason(strings.ToLower(strings.TrimPrefix(in.GetReason().String(), reasonPrefix))),
		Explain: in.GetExplanation(), Order: in.GetOrder(), Age: in.GetAge().AsDuration(), Frees: in.GetFreesBytes(), KeptBy: in.GetKeptBy(),
	}
}

// The forms in which things are stored.

// EncodeRun writes a run.
func EncodeRun(r run.Run) ([]byte, error) { return encode(RunProto(r)) }

// DecodeRun reads what EncodeRun wrote.
func DecodeRun(body []byte) (run.Run, error) {
	in := &janitorv1.Run{}
	err := proto.Unmarshal(body, in)
	return Run(in), err
}

// EncodeVerdict writes a verdict.
func EncodeVerdict(v plan.Verdict) ([]byte, error) { return encode(VerdictProto(v)) }

// DecodeVerdict reads what EncodeVerdict wrote.
func DecodeVerdict(body []byte) (plan.Verdict, error) {
	in := &janitorv1.Verdict{}
	err := proto.Unmarshal(body, in)
	return Verdict(in), err
}

func encode(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}
