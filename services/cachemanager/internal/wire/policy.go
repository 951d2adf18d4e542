// Package wire translates between the contract and the domain: what is sent, and
// what is stored.
package wire

import (
	"cmp"
	"fmt"
	"regexp"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/fault"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
)

// Policy reads a policy. Errors are INVALID_ARGUMENT faults; policy.Resolve finds
// what this does not.
func Policy(in *cachemanagerv1.Policy) (policy.Policy, error) {
	out := policy.Policy{
		Version: in.GetVersion(), Updated: timeOf(in.GetUpdateTime()), UpdatedBy: in.GetUpdatedBy(), Comment: in.GetComment(),
		Budget: *Budget(in.GetBudget()),
	}
	for i, rule := range in.GetRules() {
		r := policy.Rule{Name: rule.GetName(), Extends: rule.GetExtends(), Protect: rule.GetProtect(), Disabled: rule.GetDisabled(), Keep: keepOf(rule.GetKeep())}
		var err error
		if r.Match, err = Match(fmt.Sprintf("rules[%d].match", i), rule.GetMatch()); err != nil {
			return policy.Policy{}, err
		}
		out.Rules = append(out.Rules, r)
	}
	return out, nil
}

// Match reads which records are meant; field is where it stands.
func Match(field string, in *cachemanagerv1.Match) (*policy.Match, error) {
	if in == nil {
		return nil, nil
	}
	out := &policy.Match{
		MinAge: spanOf(in.GetMinAge()), MaxAge: spanOf(in.GetMaxAge()), MinUsageCount: in.MinUsageCount, MaxUsageCount: in.MaxUsageCount,
		Projects: in.GetProjects(), Daemons: in.GetDaemons(), Directories: in.GetDirectories(),
	}
	for _, t := range in.GetTypes() {
		out.Types = append(out.Types, TypeOf(t))
	}
	if text := in.GetDescription(); text != "" {
		var err error
		if out.Description, err = regexp.Compile(text); err != nil {
			return nil, fault.Invalid(field+".description", text, "is not a regular expression: "+err.Error(),
				"write it as https://github.com/google/re2/wiki/Syntax says, with \\ before characters that mean themselves")
		}
	}
	return out, nil
}

func keepOf(in *cachemanagerv1.Keep) *policy.Keep {
	if in == nil {
		return nil
	}
	out := &policy.Keep{Age: spanOf(in.GetAge()), Bytes: in.Bytes, Records: in.Records}
	if free := in.GetFreeDisk(); free != nil {
		out.FreeDisk = &policy.FreeDisk{LowBytes: free.GetLowBytes(), HighBytes: cmp.Or(free.GetHighBytes(), free.GetLowBytes())}
	}
	switch in.GetScope() {
	case cachemanagerv1.Scope_SCOPE_FLEET:
		out.Scope = policy.Fleet
	case cachemanagerv1.Scope_SCOPE_PROJECT:
		out.Scope = policy.PerProject
	case cachemanagerv1.Scope_SCOPE_TYPE:
		out.Scope = policy.PerType
	case cachemanagerv1.Scope_SCOPE_CACHE, cachemanagerv1.Scope_SCOPE_UNSPECIFIED:
	}
	return out
}

// Budget reads the bounds of a run.
func Budget(in *cachemanagerv1.Budget) *policy.Budget {
	if in == nil {
		return &policy.Budget{}
	}
	return &policy.Budget{Time: in.GetTime().AsDuration(), Records: in.Records, Bytes: in.Bytes}
}

// PolicyProto writes a policy.
func PolicyProto(in policy.Policy) *cachemanagerv1.Policy {
	out := &cachemanagerv1.Policy{Version: in.Version, UpdateTime: stamp(in.Updated), UpdatedBy: in.UpdatedBy, Comment: in.Comment}
	if in.Budget != (policy.Budget{}) {
		out.Budget = &cachemanagerv1.Budget{Records: in.Budget.Records, Bytes: in.Budget.Bytes}
		if in.Budget.Time > 0 {
			out.Budget.Time = durationpb.New(in.Budget.Time)
		}
	}
	for _, r := range in.Rules {
		out.Rules = append(out.Rules, &cachemanagerv1.Rule{
			Name: r.Name, Extends: r.Extends, Protect: r.Protect, Disabled: r.Disabled, Match: MatchProto(r.Match), Keep: keepProto(r.Keep),
		})
	}
	return out
}

// MatchProto writes which records are meant.
func MatchProto(in *policy.Match) *cachemanagerv1.Match {
	if in == nil {
		return nil
	}
	out := &cachemanagerv1.Match{
		MinAge: spanProto(in.MinAge), MaxAge: spanProto(in.MaxAge), MinUsageCount: in.MinUsageCount, MaxUsageCount: in.MaxUsageCount,
		Projects: in.Projects, Daemons: in.Daemons, Directories: in.Directories,
	}
	for _, t := range in.Types {
		out.Types = append(out.Types, TypeProto(t))
	}
	if in.Description != nil {
		out.Description = in.Description.String()
	}
	return out
}

func keepProto(in *policy.Keep) *cachemanagerv1.Keep {
	if in == nil {
		return nil
	}
	out := &cachemanagerv1.Keep{Age: spanProto(in.Age), Bytes: in.Bytes, Records: in.Records}
	if in.FreeDisk != nil {
		out.FreeDisk = &cachemanagerv1.FreeDisk{LowBytes: in.FreeDisk.LowBytes, HighBytes: in.FreeDisk.HighBytes}
	}
	switch in.Scope {
	case policy.Fleet:
		out.Scope = cachemanagerv1.Scope_SCOPE_FLEET
	case policy.PerProject:
		out.Scope = cachemanagerv1.Scope_SCOPE_PROJECT
	case policy.PerType:
		out.Scope = cachemanagerv1.Scope_SCOPE_TYPE
	case policy.PerCache:
	}
	return out
}

// Pin reads a pin that was stored.
func Pin(in *cachemanagerv1.Pin) (policy.Pin, error) {
	out := policy.Pin{
		ID: in.GetId(), Reason: in.GetReason(), Created: timeOf(in.GetCreateTime()), Expires: timeOf(in.GetExpireTime()), CreatedBy: in.GetCreatedBy(),
	}
	if record := in.GetRecord(); record != nil {
		out.Cache, out.Record = Ref(record.GetCache()), record.GetId()
		return out, nil
	}
	var err error
	out.Match, err = Match("match", in.GetMatch())
	return out, err
}

// PinProto writes a pin.
func PinProto(in policy.Pin) *cachemanagerv1.Pin {
	out := &cachemanagerv1.Pin{
		Id: in.ID, Reason: in.Reason, CreateTime: stamp(in.Created), ExpireTime: stamp(in.Expires), CreatedBy: in.CreatedBy,
	}
	if in.Match != nil {
		out.Target = &cachemanagerv1.Pin_Match{Match: MatchProto(in.Match)}
	} else {
		out.Target = &cachemanagerv1.Pin_Record{Record: &cachemanagerv1.RecordRef{Cache: RefProto(in.Cache), Id: in.Record}}
	}
	return out
}

// Ref reads which cache is meant.
func Ref(in *cachemanagerv1.CacheRef) cache.Ref {
	return cache.Ref{Daemon: in.GetDaemon(), Directory: in.GetDirectory()}
}

// RefProto writes which cache is meant.
func RefProto(in cache.Ref) *cachemanagerv1.CacheRef {
	if in.Directory != "" {
		return &cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Directory{Directory: in.Directory}}
	}
	return &cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Daemon{Daemon: in.Daemon}}
}

func timeOf(in *timestamppb.Timestamp) time.Time {
	if in == nil {
		return time.Time{}
	}
	return in.AsTime()
}

// stamp is unset for the zero time.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func spanOf(in *durationpb.Duration) *time.Duration {
	if in == nil {
		return nil
	}
	d := in.AsDuration()
	return &d
}

func spanProto(in *time.Duration) *durationpb.Duration {
	if in == nil {
		return nil
	}
	return durationpb.New(*in)
}
