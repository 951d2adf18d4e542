package build

import "time"

// Event is one thing that happened in a build. Kind is one of Started, Waiting,
// Retry, StepEvent, LogEvent, Warning and Outcome.
type Event struct {
	Sequence uint64 // 1, 2, 3, … without gaps
	Time     time.Time
	Kind     any
}

// Started is the first event.
type Started struct {
	BuildID string
	Daemon  string
	TraceID string
}

// Waiting says that the build waits for its turn, and where it stands.
type Waiting struct {
	Position int    // from 1
	Reason   string // what it waits for, in words
}

// Retry says that the build is tried again.
type Retry struct {
	Attempt int      // that begins, from 2
	Failure *Failure // of the one before
}

// StepState is the state of a step.
type StepState int

// The states of a step, in the order in which one may follow another: BuildKit
// says of some steps that they are done before it says that they were cached.
const (
	StepStarted StepState = iota + 1
	StepProgress
	StepDone
	StepCached
	StepFailed
)

// StepEvent says that a step is in a new state.
type StepEvent struct {
	Digest       string
	Name         string
	State        StepState
	Start, End   time.Time // zero: unset
	Error        string
	Current      int64 // bytes, with StepProgress
	Total        int64 // bytes; 0: not known
	ProgressItem string
}

// LogEvent is what a step wrote.
type LogEvent struct {
	StepDigest string
	Stderr     bool
	Data       []byte
	Clipped    bool // the daemon drops what follows, but for the stream's end
}

// Warning is what the frontend warns of.
type Warning struct {
	Message    string
	Details    []string
	URL        string
	File       string
	StartLine  int
	EndLine    int
	StepDigest string
}

// StepCounts counts the steps of a build's graph. BuildKit's bookkeeping
// (loading the Dockerfile, exporting) is not counted.
type StepCounts struct {
	Total, Cached, Completed, Failed int
}

// PhaseTimes says how long the phases of a build took.
type PhaseTimes struct {
	Total, Queue, Context, Solve, Export time.Duration
}

// Outcome is how a build ended, and its last event.
type Outcome struct {
	State   State
	Failure *Failure // nil if and only if State is Succeeded
	Outputs []OutputResult
	Steps   StepCounts
	Times   PhaseTimes
}

// OutputResult is what became of one output.
type OutputResult struct {
	Digest    string // of the manifest or index; empty for a tree of files
	MediaType string // of the manifest, or of the artifact
	Tags      []string
	Artifact  string // name; empty for a push
	Size      int64  // bytes of the artifact
}
