package janitor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/human"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/policyfile"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

type runOptions struct {
	repositories []string
	plan         string
	policy       string
	force        bool
	forceAll     bool
	maxTime      time.Duration
	requestID    string
	format       string
}

func runCommand(conn *connect.Flags) *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Remove from the registry what the policy, or a plan, says",
		Long: `Removes what the policy in force says, or that of a file, or just what a plan named, blobs
included, while pushes and pulls go on. Without --force nothing is removed: the run only
says what it would do. What is leased, or was used since the plan, stays. What went is in
quarantine first, and kiln janitor restore brings it back.

Ctrl-C cancels the run: what it has hidden and not yet removed comes back.

With --format json each line is an event, a kiln.janitor.v1.RunResponse.`,
		Example: `  kiln janitor run
  kiln janitor run --force
  kiln janitor run --plan sha256:1f3c… --force
  kiln janitor run --policy stricter.yaml --repository 'cache/**' --force`,
		Args: func(cmd *cobra.Command, args []string) error {
			return cmp.Or(cobra.NoArgs(cmd, args), show.CheckPlan(o.plan, "kiln janitor plan"))
		},
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error { return c.run(ctx, o) }),
	}
	cmd.Flags().StringSliceVar(&o.repositories, "repository", nil, "only these `repositories`: globs, as in a policy (default: all)")
	cmd.Flags().StringVar(&o.plan, "plan", "", "carry out the plan of this `digest`, which kiln janitor plan tells")
	cmd.Flags().StringVar(&o.policy, "policy", "", "run by the policy in this `file` (YAML; - is standard input), not by the one in force")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "really remove")
	cmd.Flags().BoolVar(&o.forceAll, "force-all", false, "also when the policy is empty or removes everything")
	show.AddDuration(cmd.Flags(), &o.maxTime, "max-time", "remove nothing more after this `time`; what is left goes in the next run")
	cmd.Flags().StringVar(&o.requestID, "request-id", "", "the same `id` is the same run, and is watched, not started again")
	show.AddFormat(cmd, &o.format, "text, or json: one event a line")
	cmd.MarkFlagsMutuallyExclusive("plan", "policy")
	return cmd
}

func (c *call) run(ctx context.Context, o *runOptions) error {
	req := &janitorv1.RunRequest{Repositories: o.repositories, Force: o.force, ForceAll: o.forceAll, RequestId: o.requestID}
	if o.plan != "" {
		req.By = &janitorv1.RunRequest_PlanDigest{PlanDigest: o.plan}
	}
	if o.policy != "" {
		p := &janitorv1.Policy{}
		if err := policyfile.Read(c.in, o.policy, p, "docs/guides/operator.md has one that holds"); err != nil {
			return err
		}
		req.By = &janitorv1.RunRequest_Policy{Policy: p}
	}
	if o.maxTime > 0 {
		req.Budget = &janitorv1.Budget{Time: durationpb.New(o.maxTime)}
	}
	stream, err := c.api.Run(ctx, req)
	if err != nil {
		return err
	}
	id := ""
	for {
		event, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return errors.Join(err, c.cancel(ctx, id, err))
		}
		if event.GetStarted() != nil {
			id = event.GetStarted().GetId()
		}
		if o.format == "json" {
			err = show.JSON(c.out, event)
		} else {
			err = c.tell(event)
		}
		if err != nil {
			return err
		}
		if r := event.GetFinished(); r != nil {
			if err := failedRun(r); err != nil {
				return err
			}
		}
	}
}

// cancelTimeout bounds how long Ctrl-C waits for the end of a run.
const cancelTimeout = 30 * time.Second

// cancel ends the run of a command that was told to end.
func (c *call) cancel(ctx context.Context, id string, why error) error {
	if id == "" || ctx.Err() == nil && status.Code(why) != codes.Canceled {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	_, err := c.api.CancelRun(ctx, &janitorv1.CancelRunRequest{RunId: id})
	return err
}

// tell says to a person what happens in a run.
func (c *call) tell(event *janitorv1.RunResponse) error {
	var err error
	switch e := event.GetEvent().(type) {
	case *janitorv1.RunResponse_Planned:
		c.warn(e.Planned.GetWarnings())
		_, err = fmt.Fprintf(c.out, "goes: %s\n", amount(e.Planned.GetRemove()))
	case *janitorv1.RunResponse_Removed:
		if item := e.Removed.GetItem(); item.GetKind() != janitorv1.ItemKind_ITEM_KIND_BLOB { // which are many
			_, err = fmt.Fprintf(c.out, "%s %s  %s\n", c.term.Paint(table.Red, "remove"), name(item), table.Clean(e.Removed.GetExplanation()))
		}
	case *janitorv1.RunResponse_Kept:
		_, err = fmt.Fprintf(c.out, "%s   %s  %s\n", c.term.Paint(table.Green, "keep"), name(e.Kept.GetItem()), table.Clean(e.Kept.GetExplanation()))
	case *janitorv1.RunResponse_Defect:
		c.defect(e.Defect)
	case *janitorv1.RunResponse_Progress:
		if c.term.Width > 0 { // for a person who waits
			c.waits(e.Progress.GetPhase())
		}
		if c.term.Width > 0 && e.Progress.GetTotal() > 0 {
			_, err = fmt.Fprintf(c.errOut, "%s: %d of %d\n", word(e.Progress.GetPhase(), "RUN_PHASE_"), e.Progress.GetDone(), e.Progress.GetTotal())
		}
	case *janitorv1.RunResponse_Finished:
		_, err = fmt.Fprintln(c.out, summary(e.Finished, c.flags))
	}
	return err
}

// defect says what is wrong, unless a warning of the plan said so.
func (c *call) defect(d *janitorv1.Defect) {
	repository, message := table.Clean(d.GetRepository()), table.Clean(d.GetMessage())
	for line := range c.told {
		if strings.HasPrefix(line, "warning: "+repository+": ") && strings.Contains(line, message) {
			return
		}
	}
	c.once(fmt.Sprintf("%s %s: %s; %s", c.term.Paint(table.Yellow, "defect"), repository, message, d.GetRemedy()))
}

// waits explains phases in which a run only waits.
func (c *call) waits(phase janitorv1.RunPhase) {
	switch phase {
	case janitorv1.RunPhase_RUN_PHASE_SETTLE:
		c.once("settle: waiting for pushes under way, which may name what is about to go (settle in the janitor's configuration, 5s by default)")
	case janitorv1.RunPhase_RUN_PHASE_RECHECK:
		c.once("recheck: waiting as long again for pushes that have found what went, which then comes back")
	}
}

func (c *call) warn(warnings []string) {
	for _, w := range warnings {
		c.once("warning: " + table.Clean(w))
	}
}

// name is what an item is called: "cache/web:main", or by its digest.
func name(item *janitorv1.Item) string {
	text := short(item.GetDigest())
	if item.GetKind() == janitorv1.ItemKind_ITEM_KIND_MANIFEST && len(item.GetTags()) > 0 {
		return item.GetRepository() + ":" + item.GetTags()[0]
	}
	if item.GetRepository() != "" {
		text = item.GetRepository() + "@" + text
	}
	return text
}

// summary is what a run came to.
func summary(r *janitorv1.Run, flags string) string {
	if r.GetDryRun() {
		return fmt.Sprintf("would remove %s; --force really does", amount(r.GetPredicted()))
	}
	text := fmt.Sprintf("%s: removed %s in %s (run %s)", word(r.GetState(), "RUN_STATE_"), amount(r.GetRemoved()),
		show.Lasted(r.GetEndTime().AsTime().Sub(r.GetStartTime().AsTime())), r.GetId())
	if w := r.GetWaiting(); w.GetSizeBytes() > 0 {
		text += fmt.Sprintf("\n%d blobs with %s follow in a later run, when no build can want them any more", w.GetBlobs(), human.Size(w.GetSizeBytes()))
	}
	if r.GetVerifiedManifests() > 0 {
		text += fmt.Sprintf("\nresolved %d manifests that are left: %d are not whole", r.GetVerifiedManifests(), r.GetBrokenManifests())
	}
	if r.GetReach() == janitorv1.Reach_REACH_STORAGE && (r.GetRemoved().GetManifests() > 0 || r.GetRemoved().GetBlobs() > 0) {
		text += fmt.Sprintf("\nto bring it back: kiln janitor restore%s --run %s", flags, r.GetId())
	}
	return text
}

// failedRun is an error for a run that did not do all, so that scripts see it.
func failedRun(r *janitorv1.Run) error {
	switch r.GetState() {
	case janitorv1.RunState_RUN_STATE_SUCCEEDED:
		return nil
	case janitorv1.RunState_RUN_STATE_PARTIAL:
		if r.GetError() == nil {
			return nil // the budget is spent, as was asked
		}
	}
	text := r.GetError().GetMessage()
	if text == "" {
		text = "it did not come to its end"
	}
	return fault.New(fault.Internal, "", fmt.Sprintf("the run is %s: %s", word(r.GetState(), "RUN_STATE_"), text), "kiln janitor runs "+r.GetId()+" shows what it did")
}
