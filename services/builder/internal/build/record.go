package build

import (
	"slices"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// State is where a build stands.
type State int

// The states of a build. All from Succeeded on are final.
const (
	Queued State = iota + 1
	Running
	Succeeded
	Failed
	Cancelled
	TimedOut
	Interrupted
)

// Final reports whether a build in this state has ended.
func (s State) Final() bool { return s >= Succeeded }

func (s State) String() string {
	return [...]string{"unspecified", "queued", "running", "succeeded", "failed", "cancelled", "timed_out", "interrupted"}[s]
}

// Origin is how a build came.
type Origin int

// The origins of a build.
const (
	OriginAPI Origin = iota + 1
	OriginGateway
)

func (o Origin) String() string {
	return [...]string{"unspecified", "api", "gateway"}[o]
}

// Record is what is remembered of a build.
type Record struct {
	ID      string
	Project string
	State   State
	Origin  Origin
	Created time.Time
	Started time.Time // zero: its solve was not sent
	Ended   time.Time // zero: not ended
	Daemon  string
	Tags    []string
	Outcome *Outcome // set when State is final
	TraceID string
	Caller  string
	LastSeq uint64 // of the last event that is stored
	Steps   StepCounts

	RequestID   string
	Fingerprint string   // of the request: equal for equal requests
	RetryOf     string   // id of the build that this one retries
	Attempt     int      // from 1
	Detached    bool     // it goes on without a caller
	Waiting     *Waiting // its place in the queue; nil when it does not wait
	HasSecrets  bool     // its request had secrets, which are not stored
	MaxAttempts int
	Priority    int
}

// Tenant is whose limits and share of the turns count: the identity of the
// caller, or the project when the caller has none.
func (r Record) Tenant() string {
	if r.Caller != "" {
		return r.Caller
	}
	return r.Project
}

// maxListedTags bounds the tags of a record in a list.
const maxListedTags = 100

// Summary returns the record as lists have it: without what makes a record large, the
// typed details and the log of a failure, and all but the first of many tags.
func (r Record) Summary() Record {
	r.Tags = r.Tags[:min(len(r.Tags), maxListedTags)]
	if r.Outcome == nil {
		return r
	}
	outcome := *r.Outcome
	outcome.Outputs = slices.Clone(outcome.Outputs)
	for i := range outcome.Outputs {
		tags := outcome.Outputs[i].Tags
		outcome.Outputs[i].Tags = tags[:min(len(tags), maxListedTags)]
	}
	if outcome.Failure != nil {
		failure := *outcome.Failure
		failure.Details, failure.LogTail = nil, nil
		outcome.Failure = &failure
	}
	r.Outcome = &outcome
	return r
}

// Failure is why a build did not succeed.
type Failure struct {
	Kind       fault.Kind
	Reason     string // name of a kiln.errors.v1.Reason without its prefix
	Message    string // one line
	Remedy     string // what to do
	Step       string
	StepDigest string
	Location   *Location
	ExitCode   *int32
	LogTail    []string
	LogClipped bool // the daemon dropped a part of what the step wrote
	Reference  string
	Class      Class
	Details    []Detail
}

// Detail is a typed detail of a daemon's error, in BuildKit's own encoding.
type Detail struct {
	TypeURL string
	Value   []byte
}

// Class says whose business a failure is.
type Class int

// The classes of failures.
const (
	User Class = iota + 1
	Infrastructure
	Policy
	ByCancel
	ByTimeout
)

// Location is a place in the Dockerfile.
type Location struct {
	File      string
	StartLine int
	EndLine   int
	Snippet   string
}
