// Package up runs all of Kiln on one machine: a registry and buildkitd as
// supervised children, and the three services in this process.
package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder"
	"github.com/kilnbuild/kiln/services/kiln/internal/supervise"
)

const (
	// hurryTimeout is how long the services may still take when the user asked
	// twice for the end.
	hurryTimeout = 3 * time.Second
	// leftoversTimeout bounds the last clean-up.
	leftoversTimeout = 30 * time.Second
	// progressEvery is how often a start that takes long says what it waits for.
	progressEvery = 5 * time.Second
	pollEvery     = 50 * time.Millisecond
)

// Session is how a run talks with whoever started it.
type Session struct {
	// Out takes lines for the user.
	Out io.Writer
	// Hurry, once closed, ends the run without patience.
	Hurry <-chan struct{}
	// Ready is called once all serve, with the text that says what listens where.
	Ready func(summary string)
}

// Run runs Kiln until ctx ends, which is no error. When it returns, no process,
// mount or container that it started is left, nor the sockets.
func Run(ctx context.Context, opts Options, session Session) (err error) {
	if err := needRoot(); err != nil {
		return err
	}
	opts, err = opts.complete()
	if err != nil {
		return err
	}
	r := &runner{opts: opts, session: session}
	if r.addrs, err = opts.addresses(); err != nil {
		return err
	}
	if err := r.checkFresh(ctx); err != nil {
		return err
	}
	if r.paths, err = makePaths(opts.DataDir); err != nil {
		return err
	}
	if err := r.checkRoots(); err != nil {
		return err
	}
	lock, err := claim(ctx, r.paths)
	if err != nil {
		return err
	}
	defer release(lock)
	if r.bins, err = findBinaries(opts); err != nil {
		return err
	}
	if err := checkPorts(ctx, r.addrs); err != nil {
		return err
	}
	if err := os.MkdirAll(r.paths.sockets, 0o700); err != nil {
		return err
	}
	if err := r.setUpToken(); err != nil {
		return err
	}
	if err := r.setUpSteps(ctx); err != nil {
		return err
	}
	if err := r.writeConfigs(); err != nil {
		return errors.Join(err, r.closeSteps())
	}
	return r.run(ctx)
}

// checkFresh refuses a start before a new data directory is made, so that it leaves nothing behind.
func (r *runner) checkFresh(ctx context.Context) error {
	if _, err := os.Stat(r.opts.DataDir); !errors.Is(err, os.ErrNotExist) {
		return nil // Run checks the same, after who uses the directory
	}
	if err := r.opts.checkStepNetwork(); err != nil {
		return err
	}
	if _, err := findBinaries(r.opts); err != nil {
		return err
	}
	return checkPorts(ctx, r.addrs)
}

// checkRoots refuses allowed roots that give the host or Kiln's state away. A working
// directory that does is no allowed root by default: builds that upload need none.
func (r *runner) checkRoots() error {
	err := builder.CheckRoots(r.opts.AllowRoots, r.paths.root)
	if err != nil && r.opts.rootsByDefault {
		r.opts.AllowRoots = nil
		return nil
	}
	if refused, ok := errors.AsType[*fault.Error](err); ok {
		refused.Field, refused.Remedy = "--allow-root", "name only directories that hold sources with --allow-root, such as /srv/src"
	}
	return err
}

// runner is one run.
type runner struct {
	opts    Options
	session Session
	addrs   addresses
	paths   paths
	bins    binaries
	steps   *steps // nil: steps have the host's network

	sayMu sync.Mutex
}

// say prints a line. Supervisors call it at any time.
func (r *runner) say(line string) {
	r.sayMu.Lock()
	defer r.sayMu.Unlock()
	fmt.Fprintln(r.session.Out, line)
}

// run starts all, waits for the end, and cleans up.
func (r *runner) run(ctx context.Context) error {
	environ := os.Environ()
	registry, buildkitd := r.newRegistry(environ), r.newBuildkitd(environ)
	// The children end after the services, which need them to drain.
	childCtx, stopChildren := context.WithCancel(context.WithoutCancel(ctx))
	defer stopChildren()
	done := make(chan error, 1)
	go func() {
		done <- lifecycle.Run(ctx,
			lifecycle.Task{Name: "services", Run: func(ctx context.Context) error {
				defer stopChildren()
				return r.serve(ctx, registry, buildkitd)
			}},
			lifecycle.Task{Name: "daemons", Run: func(ctx context.Context) error {
				err := lifecycle.Run(childCtx, append(r.stepTasks(),
					lifecycle.Task{Name: "registry", Run: registry.Run},
					lifecycle.Task{Name: "buildkitd", Run: buildkitd.Run})...)
				if err == nil {
					<-ctx.Done() // They were told to end: so were we, in a moment.
				}
				return err
			}},
		)
	}()

	var err error
	select {
	case err = <-done:
	case <-r.session.Hurry:
		stopChildren()
		registry.Kill()
		buildkitd.Kill()
		select {
		case err = <-done:
		case <-time.After(hurryTimeout):
			err = errors.New("the services did not end in time")
		}
	}
	return errors.Join(r.explain(err), r.cleanUp(ctx))
}

// explain shows the log of a child that did not start, and makes the error short.
func (r *runner) explain(err error) error {
	failed, ok := errors.AsType[*supervise.StartError](err)
	if !ok {
		return err
	}
	if failed.Tail != "" {
		r.say(fmt.Sprintf("%s wrote:\n  %s", failed.Name, strings.ReplaceAll(failed.Tail, "\n", "\n  ")))
	}
	return failed
}

// cleanUp removes what is left once all processes have ended.
func (r *runner) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leftoversTimeout)
	defer cancel()
	err := errors.Join(removeLeftovers(ctx, r.paths, r.bins.runc), removeNamespaces(r.paths), r.closeSteps(), r.withdrawToken(), r.profile().Withdraw())
	if r.paths.outside() {
		return errors.Join(err, os.RemoveAll(r.paths.sockets))
	}
	return errors.Join(err, os.RemoveAll(r.paths.buildkitSocket()), os.RemoveAll(r.paths.traceSocket()))
}

// serve runs the three services until ctx ends, and announces when all serve.
func (r *runner) serve(ctx context.Context, registry, buildkitd *supervise.Child) error {
	parts, telemetries, err := r.newServices(ctx)
	if err != nil {
		return err
	}
	tasks := []lifecycle.Task{{Name: "start", Run: func(ctx context.Context) error {
		return r.announce(ctx, r.waits(parts, registry, buildkitd))
	}}}
	for _, part := range parts {
		tasks = append(tasks, lifecycle.Task{Name: part.name, Run: part.service.Run})
	}
	err = lifecycle.Run(ctx, tasks...)
	// Spans that nobody takes are no reason to fail; the service's log says so.
	_ = telemetries.Close(context.WithoutCancel(ctx))
	return err
}

// wait is a part that the start waits for.
type wait struct {
	name, log, at string
	check         func(context.Context) error
}

func (r *runner) waits(parts []part, registry, buildkitd *supervise.Child) []wait {
	child := func(c *supervise.Child) func(context.Context) error {
		return func(context.Context) error {
			select {
			case <-c.Ready():
				return nil
			default:
				return errors.New("it does not answer yet")
			}
		}
	}
	all := []wait{
		{"registry", "registry", r.addrs.registryName(), child(registry)},
		{"buildkitd", "buildkitd", "unix://" + r.paths.buildkitSocket(), child(buildkitd)},
	}
	for _, part := range parts {
		all = append(all, wait{part.name, part.log, part.service.Addr(), func(ctx context.Context) error {
			return serving(ctx, part.service.Addr())
		}})
	}
	return all
}

// announce waits until all parts serve, says so, and then waits for ctx. A part
// that is not there in time is an error.
func (r *runner) announce(ctx context.Context, pending []wait) error {
	all := pending
	deadline := time.NewTimer(r.opts.StartTimeout)
	defer deadline.Stop()
	progress := time.NewTicker(progressEvery)
	defer progress.Stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		var err error
		if pending, err = r.ask(ctx, pending); len(pending) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-deadline.C:
			return r.late(pending, err)
		case <-progress.C:
			r.say("  waiting for " + names(pending))
		case <-poll.C:
		}
	}
	if ctx.Err() == nil {
		r.publishProfile()
		r.session.Ready(r.summary(all))
	}
	<-ctx.Done()
	return nil
}

// ask returns the parts that do not serve yet, with the first one's reason.
func (r *runner) ask(ctx context.Context, pending []wait) ([]wait, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var still []wait
	var first error
	for _, part := range pending {
		if err := part.check(ctx); err != nil {
			still = append(still, part)
			if first == nil {
				first = fmt.Errorf("%s: %w", part.name, err)
			}
			continue
		}
		r.say(fmt.Sprintf("  %-14s serves at %s", part.name, part.at))
	}
	return still, first
}

func (r *runner) late(pending []wait, err error) error {
	return fault.Wrap(err, fault.Unavailable, "",
		fmt.Sprintf("not there within %s: %s", r.opts.StartTimeout, names(pending)),
		fmt.Sprintf("see %s, or give it longer with --start-timeout", r.paths.log(pending[0].log)))
}

func names(parts []wait) string {
	var all []string
	for _, part := range parts {
		all = append(all, part.name)
	}
	return strings.Join(all, ", ")
}
