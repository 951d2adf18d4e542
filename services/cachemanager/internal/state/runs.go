package state

import (
	"context"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/runlog"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/run"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

type (
	runs     = runlog.Runs[run.Run, plan.Verdict]
	policies = runlog.Policies[policy.Policy]
)

func runsIn(d runlog.Database) runs {
	return runs{
		Database: d, Run: runlog.Codec[run.Run]{Encode: wire.EncodeRun, Decode: wire.DecodeRun},
		Verdict: runlog.Codec[plan.Verdict]{Encode: wire.EncodeVerdict, Decode: wire.DecodeVerdict},
		Key: func(r run.Run) runlog.Key {
			return runlog.Key{ID: r.ID, RequestID: r.RequestID, Started: r.Started, Ended: r.Ended}
		},
	}
}

func policiesIn(d runlog.Database) policies {
	return policies{
		Database: d, Policy: runlog.Codec[policy.Policy]{Encode: wire.EncodePolicy, Decode: wire.DecodePolicy},
		Number: func(p policy.Policy, version int64) policy.Policy { p.Version = version; return p },
		Bare:   func(p policy.Policy) policy.Policy { return policy.Policy{Rules: p.Rules, Budget: p.Budget} },
	}
}

// errInterrupted is why runs ended that an earlier process left.
var errInterrupted = fault.New(fault.Aborted, "INTERRUPTED", "the cache manager stopped while the run was under way",
	"what it removed is in its verdicts; the next run goes on")

func interrupted(r run.Run) run.Run {
	r.State, r.Err, r.Ended = run.Interrupted, errInterrupted, time.Now()
	return r
}

// Configure puts the configured policy into force when there is none yet, or when the
// configuration has another one than when it was read last.
func (s *Store) Configure(ctx context.Context, p policy.Policy, now time.Time) error {
	p.Updated, p.UpdatedBy = now, ""
	return s.policies.Configure(ctx, p)
}
