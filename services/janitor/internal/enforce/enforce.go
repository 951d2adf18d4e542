// Package enforce keeps a registry to a policy: it looks at what is stored, plans, removes
// manifests, sweeps what nothing reaches any more into a quarantine, and proves that what
// is left is whole.
package enforce

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/lease"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// Storage is what is asked of the registry's storage here.
type Storage interface {
	// Inventory is what is stored now.
	Inventory(ctx context.Context, look inventory.Look) (inventory.Registry, error)
	// Lacks are what manifests of an inventory name and is not there.
	Lacks(ctx context.Context, r inventory.Registry) ([]inventory.Lack, error)
	// Wanted is what of the digests that a run has taken is linked again, or named by a
	// manifest that was not marked.
	Wanted(ctx context.Context, marked inventory.Registry, taken func(content.Digest) bool) ([]inventory.Lack, error)
	// WantedIn is Wanted in some repositories, of what was taken from each.
	WantedIn(ctx context.Context, repositories []string, marked inventory.Registry, taken func(repository string, digest content.Digest) bool) ([]inventory.Lack, error)
	// Fresh returns what manifests of a repository name now that are not among the known ones.
	Fresh(repository string, known func(content.Sum) bool) (inventory.Fresh, error)
	// Atomic reports that what is written as something is taken is not lost for a moment either.
	Atomic() bool
	// Retagged is what tags of repositories lead to of that which is gone, children first.
	Retagged(ctx context.Context, repositories []string, gone func(repository string, digest content.Digest) bool) ([]inventory.Lack, error)
	// Mend brings back from the quarantines what is lacking, and reports whether it is there.
	Mend(l inventory.Lack) (bool, error)

	// Lock makes this janitor the only one that runs on the storage. The context that it
	// returns ends when the lock is lost. Taken, it is an ALREADY_EXISTS fault.
	Lock(ctx context.Context, run string) (held context.Context, unlock func(), err error)
	// Low reports whether the disk is nearly full. Reserve keeps the room that a run needs then, and
	// SpendReserve gives it up.
	Low() (bool, error)
	Reserve() error
	SpendReserve()
	// Begin makes the quarantine of a run, and Resume opens that of one that has begun.
	Begin(head quarantine.Head) (Quarantine, error)
	Resume(run string) (Quarantine, error)
	// Journals are those of all runs, the oldest first.
	Journals() ([]quarantine.Journal, error)
	// Holds reports whether what an entry names is in quarantine.
	Holds(e quarantine.Entry) (bool, error)
	// Restore brings back what an entry names with all that it needs, as if pushed at a time.
	Restore(e quarantine.Entry, at time.Time) (present, missing bool, err error)
	// Purge removes what entries name, and PurgeRuns all of runs, for good.
	Purge(entries []quarantine.Entry) error
	PurgeRuns(ctx context.Context, runs []string) error
}

// Quarantine is what one run takes. Each thing is taken only if it is as it was when the
// run decided on it.
type Quarantine interface {
	// Note writes to the journal, and returns when that lasts.
	Note(lines ...quarantine.Line) error
	// Manifest takes a manifest and those tags of it; Tag one that leads nowhere.
	Manifest(repository string, digest content.Digest, linked time.Time, tags []inventory.Tag) (taken bool, err error)
	Tag(repository string, tag inventory.Tag) (taken bool, err error)
	Upload(repository string, u inventory.Upload) (bool, error)
	Link(repository string, digest content.Digest, changed time.Time) (bool, error)
	// Copy copies the links of a manifest and of its tags, which the registry is to delete itself;
	// Drop removes the copies.
	Copy(repository string, digest content.Digest, tags []string) error
	Drop(repository string, digest content.Digest, tags []string) error
	// Hide takes the links to a blob, and Show puts them back.
	Hide(o inventory.Orphan) (hidden bool, err error)
	Show(digest content.Digest, links []string) error
	// Blob takes the bytes of a blob, and Return puts them back.
	Blob(o inventory.Orphan) (bool, error)
	Return(digest content.Digest) (bool, error)
	// Undo puts back a manifest that was taken by half.
	Undo(e quarantine.Entry) error
	// Same reports whether the link of a manifest is as it was.
	Same(repository string, digest content.Digest, linked time.Time) (bool, error)
	// DropEmpty removes a repository in which nothing is but links to blobs that are older
	// than a time.
	DropEmpty(repository string, before time.Time) error
	Close() error
}

// Registry is what is asked of the registry's API here.
type Registry interface {
	// DeleteManifest deletes a manifest and its tags; one that is gone is no error.
	DeleteManifest(ctx context.Context, repository string, digest content.Digest) error
}

// Remote is a registry by its API alone.
type Remote interface {
	// Inventory is what tags reach now; when created is set, with when that was made.
	Inventory(ctx context.Context, created bool) (_ inventory.Registry, warnings []string, _ error)
	// Delete deletes a manifest, if these tags still lead to it.
	Delete(ctx context.Context, repository string, digest content.Digest, tags []string) (deleted bool, _ error)
}

// Checker knows the registry.
type Checker interface {
	// Foreign is an error when the storage is not the registry's, as far as that answers.
	Foreign(ctx context.Context) error
	// Caches reports whether the registry remembers blobs that were taken from its storage.
	Caches(ctx context.Context) (bool, error)
	// Deaf is an error when notifications are configured and do not arrive.
	Deaf(ctx context.Context) error
}

// State is what outlives the process.
type State interface {
	PolicyInForce(ctx context.Context) (policy.Policy, error)
	// RecordUses keeps when things were used.
	RecordUses(ctx context.Context, uses []lastuse.Use) (news int, err error)
	// Uses is all that is known of uses, and Leases those that have not ended.
	Uses(ctx context.Context) (*lastuse.Book, error)
	// UsesSince is what is known of uses after a time.
	UsesSince(ctx context.Context, since time.Time) (*lastuse.Book, error)
	Leases(ctx context.Context, now time.Time) (lease.Set, error)
	// StartRun keeps a run that begins. With a request id that a run has already, it
	// keeps nothing and returns that run and false.
	StartRun(ctx context.Context, r run.Run) (_ run.Run, started bool, _ error)
	// RunByRequest returns the run of a request id, and RunOf that of an id.
	RunByRequest(ctx context.Context, requestID string) (_ run.Run, found bool, _ error)
	RunOf(ctx context.Context, id string) (run.Run, error)
	// TakeUp keeps a run that is under way again.
	TakeUp(ctx context.Context, r run.Run) error
	AddVerdicts(ctx context.Context, id string, verdicts []plan.Verdict) error
	// UpdateRun keeps how far a run has come.
	UpdateRun(ctx context.Context, r run.Run) error
	FinishRun(ctx context.Context, r run.Run) error
}

// Metrics counts runs.
type Metrics interface {
	RunEnded(ctx context.Context, r run.Run)
	// Braked takes whether the last run waits for an approval.
	Braked(ctx context.Context, is bool)
	// Doubted takes of how many manifests it is not known what they name.
	Doubted(ctx context.Context, manifests int64)
	// Quarantined takes what is in quarantine.
	Quarantined(ctx context.Context, blobs, bytes int64)
}

// Options is what an engine is made of.
type Options struct {
	Storage  Storage // nil: out of reach
	Remote   Remote  // in its place
	Registry Registry
	Checker  Checker
	State    State
	Metrics  Metrics
	Log      *slog.Logger
	Tracer   trace.Tracer
	NewID    func() string
	Now      func() time.Time // that ages are counted to
	// Clock says why ages cannot be counted now, and no run removes anything; nil: they can.
	Clock func(ctx context.Context) error
	// MaxShare is the percentage of the manifests, or of their bytes, that a run which nobody has
	// asked for removes at most. 0 or 100: all.
	MaxShare int32
	// Settle is how long runs wait for requests that were under way.
	Settle time.Duration
	// Listens says that uses are told by notifications: without them ages count from uses
	// that builds tell of, and from pushes.
	Listens bool
	// Looked is told how many blobs a look has found; it may be nil.
	Looked func(blobs int)
}

// Engine plans, and carries plans out.
type Engine struct {
	Options
	plans   plans
	looking chan struct{} // has room for one look at the storage

	mu      sync.Mutex
	active  map[string]*Active // by the id of the run
	remover string             // id of the run that removes by the API; empty: none
}

// New returns an engine.
func New(opts Options) *Engine {
	return &Engine{Options: opts, looking: make(chan struct{}, 1), active: map[string]*Active{}}
}

func fail(span trace.Span, err error) {
	span.RecordError(err)
	span.SetStatus(codes.Error, err.Error())
}

// storeTimeout bounds how long it may take to store something.
const storeTimeout = 30 * time.Second
