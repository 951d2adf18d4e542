package buildkit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/tonistiigi/fsutil"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/contextfs"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// job is one solve: what BuildKit is asked for, and what is open for it until it
// has ended.
type job struct {
	daemon *Daemon
	build  string // its id
	spec   build.Spec
	opt    client.SolveOpt
	def    *llb.Definition // in place of a frontend

	contextKey string // tells the context apart from others of the project

	sources *sourcePolicy
	users   *users // nil: the builder has none
	reading contextfs.Watch

	outputs []*output
	open    []io.Closer
}

// prepare says in BuildKit's terms what a spec asks for, and opens what it reads.
// Its errors are the caller's: what is not there, is wrong or is not granted. A job
// must be closed.
func (d *Daemon) prepare(id string, spec build.Spec) (_ *job, err error) {
	j := &job{daemon: d, build: id, spec: spec, opt: client.SolveOpt{
		Ref:            id,
		FrontendAttrs:  make(map[string]string),
		FrontendInputs: make(map[string]llb.State),
		LocalMounts:    make(map[string]fsutil.FS),
		OCIStores:      make(map[string]content.Store),
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.close())
		}
	}()
	for _, part := range []func() error{
		j.addRights, j.addContexts, j.addFrontend, j.addDefinition, j.addSourcePolicy, j.addCache, j.addOutputs, j.addSession, j.checkPolicy,
	} {
		if err := part(); err != nil {
			return nil, err
		}
	}
	// A key that stays has the daemon ask for changed files only, also when the builder
	// has started anew.
	j.opt.SharedKey = d.opts.SyncKeys.Build(spec.Caller, spec.Project, j.contextKey)
	return j, nil
}

// refOf names the solve of an attempt to the daemon, which may still have the one
// before: it learns late that a builder was killed.
func refOf(id string, attempt int) string {
	if attempt <= 1 {
		return id
	}
	return fmt.Sprintf("%s-%d", id, attempt)
}

// addRights asks for the rights that the request names.
func (j *job) addRights() error {
	j.opt.AllowedEntitlements = j.spec.Entitlements
	return nil
}

// checkPolicy holds the job to the builder's policy.
func (j *job) checkPolicy() error { return j.asked().Allowed(j.daemon.opts.Policy) }

// asked returns what policy and rules judge of the job.
func (j *job) asked() Asked {
	a := Asked{
		Project: j.spec.Project, Entitlements: j.opt.AllowedEntitlements, Frontend: j.opt.Frontend, Attrs: j.opt.FrontendAttrs,
	}
	for _, e := range j.opt.Exports {
		a.Exports = append(a.Exports, Entry{e.Type, e.Attrs})
	}
	for _, e := range j.opt.CacheImports {
		a.CacheImports = append(a.CacheImports, Entry{e.Type, e.Attrs})
	}
	for _, e := range j.opt.CacheExports {
		a.CacheExports = append(a.CacheExports, Entry{e.Type, e.Attrs})
	}
	for _, e := range j.opt.CacheImports {
		for _, repo := range CacheRepository(e.Type, e.Attrs) {
			if host, _, _ := strings.Cut(repo, "/"); loginOf(j.daemon.opts.Logins, host) != nil {
				a.Pulls = append(a.Pulls, repo)
			}
		}
	}
	return a
}

// authorize holds the job to the rules of its caller, which ctx carries, and lends it
// the builder's users as far as they allow.
func (j *job) authorize(ctx context.Context) error {
	grant, use := auth.GrantOf(ctx), j.asked().Use()
	if err := grant.Check(use); err != nil {
		return err
	}
	if rights := grant.Fingerprint(); j.users != nil && rights != nil {
		j.users.lend(append(rights, j.spec.Project...), func(repository string, push bool) bool {
			more := use
			more.Pulls = append(slices.Clone(use.Pulls), repository)
			if push {
				more.Pulls, more.Registries = use.Pulls, append(slices.Clone(use.Registries), repository)
			}
			return grant.Check(more) == nil
		})
	}
	return nil
}

// keep closes c when the solve has ended.
func (j *job) keep(c io.Closer) { j.open = append(j.open, c) }

// close gives back what is open, and drops artifacts that are not committed.
func (j *job) close() error {
	var errs []error
	for _, out := range j.outputs {
		errs = append(errs, out.abort())
	}
	for _, c := range j.open {
		errs = append(errs, c.Close())
	}
	j.open, j.outputs = nil, nil
	return errors.Join(errs...)
}

// run has the daemon solve the job, closes it, and returns what its outputs have
// become. When abandoned is closed, nobody waits for them any more.
func (j *job) run(ctx context.Context, statuses chan *client.SolveStatus, abandoned <-chan struct{}) (_ []build.OutputResult, err error) {
	defer func() { err = errors.Join(err, j.close()) }()
	solving, stop := j.reading.Begin(ctx)
	defer stop()
	for name, files := range j.opt.LocalMounts {
		j.opt.LocalMounts[name] = j.reading.Of(files)
	}
	res, err := j.daemon.client.Solve(solving, j.def, j.opt, statuses)
	if err != nil {
		return nil, errors.Join(j.known(err), err)
	}
	select {
	case <-abandoned:
		return nil, context.Cause(ctx)
	default:
		return j.finish(ctx, res.ExporterResponse)
	}
}

// known is what the builder itself knows of a failed solve, of which the daemon has
// only a message.
func (j *job) known(err error) error {
	if failed := cmp.Or(j.writeFailed(), j.reading.Failed()); failed != nil {
		return failed
	}
	if j.users != nil && unauthorized(err) {
		if refused := j.users.denied(); refused != nil {
			return refused
		}
	}
	if explained, ok := errors.AsType[*fault.Error](j.sources.explain(err)); ok {
		return explained
	}
	return nil
}
