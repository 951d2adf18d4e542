// Package run has the words of runs: one application of a policy, and what it did.
package run

import (
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
)

// Run is one application of a policy.
type Run struct {
	ID            string
	State         State
	Trigger       Trigger
	Started       time.Time
	Ended         time.Time // zero: not yet
	Dry           bool      // it only says what it would remove
	PolicyVersion int64     // 0: a policy of the request
	PlanDigest    string
	Predicted     plan.Amount
	Removed       plan.Amount
	Rules         []plan.RuleAmount // what really went, in the order of the rules
	Caches        []OfCache         // in the order of cache.Ref
	Err           error             // why it failed or was partial
	Caller        string            // identity; empty for the schedule
	TraceID       string
	RequestID     string
	Held          int64     // version of the policy that waits for approval; 0: none
	Folded        int64     // runs before it that did nothing and went the same way
	FoldedSince   time.Time // when the first of these started
}

// OfCache is what a run did to one cache.
type OfCache struct {
	Cache         cache.Ref
	State         State
	Err           error
	Before, After int64 // bytes
	Predicted     plan.Amount
	Removed       plan.Amount
	Unreadable    int64                       // records that could not be read, and stay
	Reasons       map[plan.Reason]plan.Amount // what really went; not stored
}

// State is where a run stands.
type State string

// The states. All but Running are final.
const (
	Running     State = "RUNNING"
	Succeeded   State = "SUCCEEDED"   // it did all that was planned
	Partial     State = "PARTIAL"     // a part: a cache was away, or the budget was spent
	Failed      State = "FAILED"      // nothing, because of an error
	Cancelled   State = "CANCELLED"   // by its caller
	Interrupted State = "INTERRUPTED" // the service stopped
)

// Trigger is why a run was started.
type Trigger string

// The triggers.
const (
	Schedule Trigger = "SCHEDULE"
	Demand   Trigger = "DEMAND"    // an RPC
	FreeDisk Trigger = "FREE_DISK" // too little disk was free
	Build    Trigger = "BUILD"     // a builder, after a build
)

// Plan is a plan with what is needed to carry it out later.
type Plan struct {
	*plan.Plan
	Digest  string // over all that would go: "sha256:…"
	Created time.Time
	Expires time.Time
	// At is whether ages were counted to another time than now, or the plan is of
	// the daemon's own rules: then it cannot be carried out.
	Hypothetical bool
	Missed       []Missed
}

// Missed is a cache that could not be reached.
type Missed struct {
	Cache cache.Ref
	Err   error
}
