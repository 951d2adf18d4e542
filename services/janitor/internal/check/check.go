// Package check finds out whether a registry is well.
package check

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/canary"
)

// State is what a check found. A higher one is worse.
type State int

// The states.
const (
	OK      State = iota // All is well.
	Unknown              // It could not be found out.
	Warn                 // It works, but will not for long, or not as it should.
	Fail                 // It does not work.
)

// States are all states.
func States() []State { return []State{OK, Unknown, Warn, Fail} }

// String is the name of the state.
func (s State) String() string { return [...]string{"ok", "unknown", "warn", "fail"}[s] }

// Result is what one check found.
type Result struct {
	Name    string
	State   State
	Message string // a sentence, with the figures
	Remedy  string // a sentence; empty when OK
	Took    time.Duration

	// The figures of the checks that have some.
	Latency       *time.Duration
	Repositories  *int
	DeleteEnabled *bool
	Disk          *Disk
}

// Disk is a file system, in bytes.
type Disk struct{ Total, Free int64 }

// Report is what all checks found.
type Report struct {
	State   State
	Results []Result // in the order of Names
	Time    time.Time
}

// The names of the checks.
const (
	Reachable = "reachable"
	Auth      = "auth"
	Latency   = "latency"
	Catalog   = "catalog"
	Delete    = "delete"
	DiskSpace = "disk"
	Cache     = "descriptor_cache"
	Notify    = "notifications"
)

// Names are the names of all checks, in the order in which they are done.
func Names() []string {
	return []string{Reachable, Auth, Latency, Catalog, Delete, DiskSpace, Cache, Notify}
}

// Passive are the names of those that push nothing to the registry.
func Passive() []string {
	return slices.DeleteFunc(Names(), func(name string) bool { return name == Cache || name == Notify })
}

// Registry is what is asked of a registry here.
type Registry interface {
	// Address is host and port.
	Address() string
	// User is who the janitor is there. Empty: anonymous.
	User() string
	// Ping asks for an answer, also one that demands credentials.
	Ping(ctx context.Context) error
	// Login asks for an answer with the credentials there are.
	Login(ctx context.Context) error
	// Repositories lists the catalogue, and FirstRepositories the first of it.
	Repositories(ctx context.Context) ([]string, error)
	FirstRepositories(ctx context.Context, most int) ([]string, error)
	// TryDelete asks to delete something that cannot exist: nil when the registry
	// would delete it if it did, content.ErrUnsupported when it would not.
	TryDelete(ctx context.Context) error
}

// Storage is what is asked of a registry's storage here.
type Storage interface {
	// Root is its directory.
	Root() string
	// Disk is the file system that it is on.
	Disk() (Disk, error)
	// Has says whether the repository is there.
	Has(repository string) (bool, error)
}

// How long checks may take: the first, and each that follows when that went well.
const (
	reachTimeout = 5 * time.Second
	timeout      = 10 * time.Second
)

// Canary finds out how the registry caches, and how long its notifications take.
type Canary interface {
	// Sing finds out how things are, or were at most so long ago.
	Sing(ctx context.Context, ago time.Duration) (canary.Found, error)
}

// Checker checks one registry.
type Checker struct {
	registry Registry
	storage  Storage // nil: out of reach
	canary   Canary  // nil: without a storage and notifications
	listens  bool    // notifications are configured
}

// New returns a checker. A nil storage is out of reach.
func New(registry Registry, storage Storage, bird Canary, listens bool) *Checker {
	return &Checker{registry: registry, storage: storage, canary: bird, listens: listens}
}

// fresh is how long what the canary has found counts for checks.
const fresh = 30 * time.Second

// Caches reports whether the registry remembers blobs that were taken from its storage.
func (c *Checker) Caches(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 6*timeout)
	defer cancel()
	found, err := c.canary.Sing(ctx, 0) // it may have been started anew with another configuration
	return found.Caches, err
}

// Deaf is an error when notifications are configured and do not arrive: then it is not
// known what was used.
func (c *Checker) Deaf(ctx context.Context) error {
	if !c.listens || c.canary == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 6*timeout)
	defer cancel()
	found, err := c.canary.Sing(ctx, fresh)
	switch {
	case err != nil:
	case found.Deaf:
		err = fault.New(fault.FailedPrecondition, "WRONG_STATE", "the registry's notifications do not arrive, so it is not known what was used; nothing is removed", notifyRemedy)
	case found.DeafToPulls:
		err = fault.New(fault.FailedPrecondition, "WRONG_STATE",
			"the registry's notifications of pulls do not arrive, or not from each of its replicas, so it is not known what was used; "+
				"nothing is removed", pullsRemedy)
	}
	return err
}

// Check does the checks of these names, or all when there is none. A name that
// does not exist is an error; a registry that is away is not.
func (c *Checker) Check(ctx context.Context, names []string) (Report, error) {
	for _, name := range names {
		if !slices.Contains(Names(), name) {
			return Report{}, fault.Invalid("checks", name, "there is no such check", "name some of reachable, auth, latency, catalog, delete, disk, descriptor_cache, notifications, or none for all")
		}
	}
	run := &run{checker: c, repositories: sync.OnceValues(func() ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		return c.registry.Repositories(ctx)
	})}
	started := time.Now()
	reachable := timed(ctx, reachTimeout, Reachable, run.reachable)
	run.away = reachable.State == Fail
	steps := map[string]func(context.Context) Result{
		Auth: run.auth, Latency: run.latency, Catalog: run.catalog, Delete: run.delete, DiskSpace: run.disk, Cache: run.cache, Notify: run.notifications,
	}
	var results []Result
	for _, name := range Names() {
		switch {
		case len(names) > 0 && !slices.Contains(names, name):
		case name == Reachable:
			results = append(results, reachable)
		case run.away && name != DiskSpace:
			results = append(results, Result{
				Name: name, State: Unknown, Message: "the registry does not answer", Remedy: reachable.Remedy,
			})
		default:
			results = append(results, timed(ctx, 2*timeout, name, steps[name]))
		}
	}
	return Report{State: worst(results), Results: results, Time: started}, ctx.Err()
}

func timed(ctx context.Context, within time.Duration, name string, step func(context.Context) Result) Result {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	started := time.Now()
	r := step(ctx)
	r.Name, r.Took = name, time.Since(started)
	return r
}

// worst is the worst state of what could be found out, and Unknown when nothing
// could.
func worst(results []Result) State {
	state, known := OK, false
	for _, r := range results {
		if r.State != Unknown {
			state, known = max(state, r.State), true
		}
	}
	if !known {
		return Unknown
	}
	return state
}

// run is one round of checks.
type run struct {
	checker      *Checker
	repositories func() ([]string, error)
	away         bool // the registry did not answer
}

func (r *run) reachable(ctx context.Context) Result {
	return judgeReachable(r.checker.registry.Address(), r.checker.registry.Ping(ctx))
}

func (r *run) auth(ctx context.Context) Result {
	return judgeAuth(r.checker.registry.User(), r.checker.registry.Login(ctx))
}

// latencyCalls is how often an answer is asked for; the first may have to connect.
const latencyCalls = 5

func (r *run) latency(ctx context.Context) Result {
	var took []time.Duration
	for range latencyCalls {
		started := time.Now()
		if err := r.checker.registry.Ping(ctx); err != nil {
			return judgeReachable(r.checker.registry.Address(), err)
		}
		took = append(took, time.Since(started))
	}
	slices.Sort(took)
	return judgeLatency(took[len(took)/2])
}

func (r *run) catalog(context.Context) Result {
	repositories, err := r.repositories()
	return judgeCatalog(len(repositories), err)
}

func (r *run) delete(ctx context.Context) Result {
	return judgeDelete(r.checker.registry.TryDelete(ctx))
}

func (r *run) disk(context.Context) Result {
	storage := r.checker.storage
	if storage == nil {
		return judgeDisk("", Disk{}, nil, nil)
	}
	disk, err := storage.Disk()
	return judgeDisk(storage.Root(), disk, err, r.foreign(storage))
}

// Foreign is an error when the storage is not the registry's, as far as the registry
// answers.
func (c *Checker) Foreign(ctx context.Context) error {
	if c.storage == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r := &run{checker: c, repositories: func() ([]string, error) { return c.registry.FirstRepositories(ctx, looked) }}
	return r.foreign(c.storage)
}

// looked is how many repositories are looked for in the storage.
const looked = 3

// foreign is an error when the storage is not the registry's. It looks at a few
// repositories: the last of a busy registry may just have gone.
func (r *run) foreign(storage Storage) error {
	var repositories []string
	if !r.away {
		repositories, _ = r.repositories() // Another check says why there are none.
	}
	if len(repositories) == 0 {
		return nil
	}
	for _, name := range repositories[:min(len(repositories), looked)] {
		if has, err := storage.Has(name); err != nil || has {
			return err
		}
	}
	return errForeign{repositories[0]}
}

func (r *run) cache(ctx context.Context) Result {
	if r.checker.canary == nil || r.checker.storage == nil {
		return judgeCache(canary.Found{}, errNoStorage)
	}
	return judgeCache(r.checker.canary.Sing(ctx, fresh))
}

func (r *run) notifications(ctx context.Context) Result {
	if !r.checker.listens {
		return Result{State: Warn, Message: "the registry's notifications are not configured: pulls are not known of", Remedy: notifyRemedy}
	}
	if r.checker.canary == nil {
		return judgeNotifications(canary.Found{}, errNoStorage)
	}
	return judgeNotifications(r.checker.canary.Sing(ctx, fresh))
}
