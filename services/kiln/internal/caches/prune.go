package caches

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/fault"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

type pruneOptions struct {
	caches    []string
	plan      string
	policy    string
	force     bool
	forceAll  bool
	maxTime   time.Duration
	requestID string
	format    string
}

func pruneCommand(conn *connect.Flags) *cobra.Command {
	o := &pruneOptions{}
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove what the policy, or a plan, says",
		Long: `Removes what the policy in force says, or that of a file, or just what a plan named.
Without --force nothing is removed: the run only says what it would do. Nothing in use,
pinned, or used since the plan is removed. Ctrl-C ends the run after the records under
way.

With --format json each line is an event, a kiln.cachemanager.v1.PruneResponse.`,
		Example: `  kiln cache prune
  kiln cache prune --force
  kiln cache prune --plan sha256:1f3c… --force
  kiln cache prune --policy everything.yaml --force --force-all`,
		Args: func(cmd *cobra.Command, args []string) error {
			return cmp.Or(cobra.NoArgs(cmd, args), show.CheckPlan(o.plan, "kiln cache plan"))
		},
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error { return c.prune(ctx, o) }),
	}
	addCaches(cmd, &o.caches)
	cmd.Flags().StringVar(&o.plan, "plan", "", "carry out the plan of this `digest`, which kiln cache plan tells")
	cmd.Flags().StringVar(&o.policy, "policy", "", "prune by the policy in this `file` (YAML; - is standard input), not by the one in force")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "really remove")
	cmd.Flags().BoolVar(&o.forceAll, "force-all", false, "also when the policy removes everything")
	show.AddDuration(cmd.Flags(), &o.maxTime, "max-time", "end after this `time`; what is left goes in the next run")
	cmd.Flags().StringVar(&o.requestID, "request-id", "", "the same `id` is the same run, and is watched, not started again")
	show.AddFormat(cmd, &o.format, "text, or json: one event a line")
	cmd.MarkFlagsMutuallyExclusive("plan", "policy")
	return cmd
}

func (c *call) prune(ctx context.Context, o *pruneOptions) error {
	req := &cachemanagerv1.PruneRequest{Caches: refs(o.caches), Force: o.force, ForceAll: o.forceAll, RequestId: o.requestID}
	if o.plan != "" {
		req.By = &cachemanagerv1.PruneRequest_PlanDigest{PlanDigest: o.plan}
	}
	if o.policy != "" {
		p, err := c.readPolicy(o.policy)
		if err != nil {
			return err
		}
		req.By = &cachemanagerv1.PruneRequest_Policy{Policy: p}
	}
	if o.maxTime > 0 {
		req.Budget = &cachemanagerv1.Budget{Time: durationpb.New(o.maxTime)}
	}
	stream, err := c.api.Prune(ctx, req)
	if err != nil {
		return err
	}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if o.format == "json" {
			err = show.JSON(c.out, event)
		} else {
			err = c.tell(event)
		}
		if err != nil {
			return err
		}
		if run := event.GetFinished(); run != nil {
			if err := c.failedRun(run); err != nil {
				return err
			}
		}
	}
}

// tell says to a person what happens in a run.
func (c *call) tell(event *cachemanagerv1.PruneResponse) error {
	var err error
	switch e := event.GetEvent().(type) {
	case *cachemanagerv1.PruneResponse_Removed:
		verb := c.term.Paint(table.Red, "remove")
		if e.Removed.GetAction() == cachemanagerv1.VerdictAction_VERDICT_ACTION_SHRINK {
			verb = c.term.Paint(table.Yellow, "shrink")
		}
		_, err = fmt.Fprintf(c.out, "%s %s  %s  %s  %s\n", verb, place(e.Removed.GetRecord().GetCache()),
			e.Removed.GetRecord().GetId(), human.Size(e.Removed.GetFreesBytes()), table.Clean(e.Removed.GetExplanation()))
	case *cachemanagerv1.PruneResponse_Kept:
		_, err = fmt.Fprintf(c.out, "%s   %s  %s  %s\n", c.term.Paint(table.Green, "keep"), place(e.Kept.GetRecord().GetCache()), e.Kept.GetRecord().GetId(),
			table.Clean(e.Kept.GetExplanation()))
	case *cachemanagerv1.PruneResponse_Missed:
		c.missed(e.Missed)
	case *cachemanagerv1.PruneResponse_Finished:
		_, err = fmt.Fprintln(c.out, summary(e.Finished))
	}
	return err
}

// summary is what a run came to, in a line.
func summary(run *cachemanagerv1.Run) string {
	if run.GetDryRun() {
		return fmt.Sprintf("would remove %s; --force really does", amount(run.GetPredicted()))
	}
	took := run.GetEndTime().AsTime().Sub(run.GetStartTime().AsTime())
	return fmt.Sprintf("%s: removed %s of %s in %s (run %s)", word(run.GetState(), "RUN_STATE_"), amount(run.GetRemoved()), amount(run.GetPredicted()),
		show.Lasted(took), run.GetId())
}

// failedRun is an error for a run that did not do all, so that scripts see it.
func (c *call) failedRun(run *cachemanagerv1.Run) error {
	switch run.GetState() {
	case cachemanagerv1.RunState_RUN_STATE_SUCCEEDED:
		return nil
	case cachemanagerv1.RunState_RUN_STATE_PARTIAL:
		if run.GetError() == nil {
			return nil // the budget is spent, as was asked
		}
	}
	text := run.GetError().GetMessage()
	if text == "" {
		text = "it did not come to its end"
	}
	return fault.New(fault.Internal, "", fmt.Sprintf("the run is %s: %s", word(run.GetState(), "RUN_STATE_"), text), "kiln cache runs "+run.GetId()+c.args+" shows what it did")
}
