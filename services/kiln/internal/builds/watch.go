package builds

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/progress"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
)

// Exit codes of a command that waits for a build. 1 is also that of a command
// that could not do its work.
const (
	exitFailed      = 1
	exitCancelled   = 3
	exitTimedOut    = 4
	exitInterrupted = 5
	exitLeft        = 130 // 128 + SIGINT, as of a process that Ctrl-C ended
)

// exitHelp is part of the help of each command that waits for a build.
const exitHelp = `It ends with 0 when the build succeeded, 1 when it failed or could not be watched,
3 when it was cancelled, 4 when it timed out, 5 when it was interrupted by a stop
of the builder, and 130 after Ctrl-C.`

type watchOptions struct {
	from     uint64
	progress string
	format   string
}

func watchCommand(conn *connect.Flags) *cobra.Command {
	o := &watchOptions{}
	cmd := &cobra.Command{
		Use:   "watch ID",
		Short: "Show a build while it runs, to its end",
		Long: `Shows the progress of a build, from its start or from an event's number on, also
over a broken connection. Ctrl-C leaves the build to itself. With --format json
each line is a kiln.builder.v1.BuildEvent.

` + exitHelp,
		Example: `  kiln builds watch 4f3c1a2e
  kiln builds watch 4f3c1a2e --progress plain
  kiln builds watch 4f3c1a2e --from 120 --format json`,
		Args:              oneID,
		ValidArgsFunction: completeBuild(conn),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			b, err := c.record(ctx, args[0])
			if err != nil {
				return err
			}
			return c.watch(ctx, b.GetId(), o)
		}),
	}
	cmd.Flags().Uint64Var(&o.from, "from", 0, "`number` of the first event to show (default: the first)")
	addWatchFlags(cmd, o)
	return cmd
}

func addWatchFlags(cmd *cobra.Command, o *watchOptions) {
	cmd.Flags().StringVar(&o.progress, "progress", "auto", "progress on standard error: "+strings.Join(progress.Modes, ", "))
	show.Choice(cmd, "progress", progress.Modes)
	show.AddFormat(cmd, &o.format, "outcome on standard output: text, or json: one event a line, and no progress")
}

// watch shows a build to its end. Its error has the exit code of the outcome.
func (c *call) watch(ctx context.Context, id string, o *watchOptions) error {
	outcome, err := c.follow(ctx, id, o)
	if outcome == nil && ctx.Err() != nil {
		return errLeft(id)
	}
	failed, ok := errors.AsType[*client.BuildError](err)
	if err != nil && !ok {
		return err
	}
	if o.format == "json" {
		return exitOf(err, failed)
	}
	p := &page{w: c.out, term: c.term}
	if failed == nil {
		p.succeeded(id, outcome)
		return p.err
	}
	p.w = c.errOut
	p.failure(failed)
	return errors.Join(p.err, exitOf(err, failed))
}

// errLeft is the end of a command that Ctrl-C ended before its build.
func errLeft(id string) error {
	return &service.Exit{
		Code: exitLeft, Err: fmt.Errorf("the build goes on: `kiln builds watch %s` watches it again, `kiln builds cancel %[1]s` ends it", id),
	}
}

// follow shows the events of a build.
func (c *call) follow(ctx context.Context, id string, o *watchOptions) (*builderv1.Outcome, error) {
	if o.format == "json" {
		return c.Watch(ctx, id, o.from, func(event *builderv1.BuildEvent) error { return show.JSON(c.out, event) })
	}
	display, err := progress.Start(c.errOut, o.progress)
	if err != nil {
		return nil, err
	}
	outcome, err := c.Watch(ctx, id, o.from, func(event *builderv1.BuildEvent) error {
		display.Show(event)
		return nil
	})
	if shown := display.Close(); shown != nil {
		return nil, errors.Join(err, shown)
	}
	return outcome, err
}

// succeeded says what a build has made.
func (p *page) succeeded(id string, o *builderv1.Outcome) {
	p.line(fmt.Sprintf("build %s succeeded in %s (%d of %d steps cached)", id,
		show.Lasted(o.GetTimes().GetTotal().AsDuration()), o.GetSteps().GetCached(), o.GetSteps().GetTotal()))
	p.outputs(o.GetOutputs())
}

// exitOf gives the error of a build its exit code.
func exitOf(err error, failed *client.BuildError) error {
	if failed == nil {
		return nil
	}
	code := exitFailed
	switch failed.State {
	case builderv1.BuildState_BUILD_STATE_CANCELLED:
		code = exitCancelled
	case builderv1.BuildState_BUILD_STATE_TIMED_OUT:
		code = exitTimedOut
	case builderv1.BuildState_BUILD_STATE_INTERRUPTED:
		code = exitInterrupted
	}
	return &service.Exit{Code: code, Err: err}
}
