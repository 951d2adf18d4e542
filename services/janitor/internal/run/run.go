// Package run has the words of runs: plans that can be carried out, and what became of
// them.
package run

import (
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// Plan is a plan that was shown.
type Plan struct {
	*plan.Plan
	Digest  string
	Created time.Time
	Expires time.Time
	// Hypothetical plans are for another time than now, and cannot be carried out.
	Hypothetical bool
	Reach        Reach
	Policy       policy.Policy // that it is by, resolved
	Looked       inventory.Took
	Took         time.Duration // to apply the policy
}

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
	Removed       plan.Amount // blobs count once they are in quarantine
	// Waiting is what nothing reaches any more because of this run, and stays for builds
	// that have read a manifest of it: the first run after max_build_time takes it.
	Waiting      plan.Amount
	Rules        []plan.RuleAmount // what really went, in the order of the rules
	Repositories []RepositoryAmount
	Err          error // why it failed or was partial
	Caller       string
	TraceID      string
	RequestID    string
	Progress     Progress
	Reach        Reach
	Resumed      int
	Folded       int64 // runs before it that did nothing either, and are not kept
	Verified     int64 // manifests that were resolved after it
	Broken       int64 // of these, those that were not whole
}

// RepositoryAmount is what went from one repository.
type RepositoryAmount struct {
	Repository string
	plan.Amount
}

// Progress is how far a run has come.
type Progress struct {
	Phase       Phase
	Done, Total int64     // items of this phase; total 0: not known
	Began       time.Time // this phase
}

// Phase is what a run is doing.
type Phase string

// The phases, in order.
const (
	Prepare    Phase = "PREPARE"    // takes the lock, finds out how the registry caches
	Planning   Phase = "PLAN"       // plans
	Manifests  Phase = "MANIFESTS"  // removes manifests
	List       Phase = "LIST"       // lists blobs
	Mark       Phase = "MARK"       // marks what manifests reach
	Hide       Phase = "HIDE"       // hides what nothing reaches from new pushes
	Settle     Phase = "SETTLE"     // waits for pushes under way, and looks again
	Quarantine Phase = "QUARANTINE" // moves blobs to the quarantine
	Recheck    Phase = "RECHECK"    // brings back what was wanted again meanwhile
	Verify     Phase = "VERIFY"     // resolves every manifest that is left
	Purge      Phase = "PURGE"      // removes for good what was in quarantine for long enough
)

// State is where a run stands.
type State string

// The states. All but Running and Interrupted are final.
const (
	Running     State = "RUNNING"
	Succeeded   State = "SUCCEEDED"   // it did all that was planned
	Partial     State = "PARTIAL"     // a part
	Failed      State = "FAILED"      // nothing, because of an error
	Cancelled   State = "CANCELLED"   // by CancelRun
	Interrupted State = "INTERRUPTED" // the service stopped; it is taken up again
)

// Trigger is why a run was started.
type Trigger string

// The triggers.
const (
	Schedule Trigger = "SCHEDULE"
	Demand   Trigger = "DEMAND" // an RPC
	Once     Trigger = "ONCE"   // the command line
	LowDisk  Trigger = "LOW_DISK"
)

// Reach is how far a janitor reaches.
type Reach string

// The reaches.
const (
	Storage Reach = "STORAGE" // blobs go, and the disk is freed
	API     Reach = "API"     // manifests go, and the registry has to free the space
)

// Defect is something that is wrong in the registry.
type Defect struct {
	Repository string
	Kind       DefectKind
	Digest     string
	References []string // that cannot be pulled because of it
	Message    string
	Remedy     string
	Mended     bool // runs put it right by themselves
}

// DefectKind is what is wrong.
type DefectKind string

// The kinds.
const (
	CorruptBlob     DefectKind = "CORRUPT_BLOB"
	MissingBlob     DefectKind = "MISSING_BLOB"
	BadManifest     DefectKind = "BAD_MANIFEST"
	EmptyManifest   DefectKind = "EMPTY_MANIFEST"
	DanglingTag     DefectKind = "DANGLING_TAG"
	DanglingLink    DefectKind = "DANGLING_LINK"
	AbandonedUpload DefectKind = "ABANDONED_UPLOAD"
	EmptyDirectory  DefectKind = "EMPTY_BLOB_DIRECTORY"
)
