package janitor

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/human"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

func runsCommand(conn *connect.Flags) *cobra.Command {
	var limit int
	var filter, format string
	cmd := &cobra.Command{
		Use:   "runs [ID]",
		Short: "List what was removed when and why, or show one run",
		Long: `Lists the runs, newest first, those of the schedule included; with an ID, shows one of them
with what became of each item. With --format json each line is a kiln.janitor.v1.Run, or a
Verdict.`,
		Example: `  kiln janitor runs
  kiln janitor runs --filter 'trigger = SCHEDULE AND state = PARTIAL'
  kiln janitor runs 01a22390-… --format json
  kiln janitor runs abandon 01a22390-…`,
		Args: cobra.MaximumNArgs(1),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			if len(args) == 1 {
				return c.oneRun(ctx, args[0], limit, format)
			}
			return c.runs(ctx, filter, limit, format)
		}),
	}
	cmd.Flags().StringVar(&filter, "filter", "", "only runs that fit this AIP-160 `expression` on state, trigger, dry_run and start_time")
	cmd.Flags().IntVar(&limit, "limit", 20, "at most so many runs, or items of one; 0: all")
	show.AddFormat(cmd, &format, "text, or json: one object a line")
	cmd.AddCommand(abandonCommand(conn))
	return cmd
}

func abandonCommand(conn *connect.Flags) *cobra.Command {
	return &cobra.Command{
		Use:   "abandon ID",
		Short: "End a run that is under way or was interrupted",
		Long: `Ends a run that is under way, or that was interrupted and would be taken up again. What it has
hidden and not yet removed is shown again; what it has removed stays in quarantine, from
which kiln janitor restore --run brings it back.`,
		Example: `  kiln janitor runs --filter 'state = INTERRUPTED'
  kiln janitor runs abandon 01a22390-…`,
		Args: cobra.ExactArgs(1),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			res, err := c.api.CancelRun(ctx, &janitorv1.CancelRunRequest{RunId: args[0]})
			if err != nil {
				return err
			}
			return c.writeRuns([]*janitorv1.Run{res.GetRun()})
		}),
	}
}

func (c *call) runs(ctx context.Context, filter string, limit int, format string) error {
	var all []*janitorv1.Run
	req := &janitorv1.ListRunsRequest{Filter: filter}
	for {
		req.PageSize = show.PageSize(limit, len(all))
		res, err := c.api.ListRuns(ctx, req)
		if err != nil {
			return err
		}
		all = append(all, res.GetRuns()...)
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" || len(all) == limit {
			break
		}
	}
	if format == "json" {
		return show.JSONLines(c.out, all)
	}
	return c.writeRuns(all)
}

func (c *call) writeRuns(runs []*janitorv1.Run) error {
	styles := map[janitorv1.RunState]table.Style{
		janitorv1.RunState_RUN_STATE_SUCCEEDED: table.Green, janitorv1.RunState_RUN_STATE_RUNNING: table.Cyan, janitorv1.RunState_RUN_STATE_PARTIAL: table.Yellow,
	}
	t := table.Table{Header: []string{"RUN", "STATE", "BY", "STARTED", "TOOK", "MANIFESTS", "BLOBS", "FREED", "WAITING", "BROKEN", "ERROR"}, GiveWay: 1}
	for _, r := range runs {
		took := "-"
		if r.GetEndTime() != nil {
			took = show.Lasted(r.GetEndTime().AsTime().Sub(r.GetStartTime().AsTime()))
		}
		by := word(r.GetTrigger(), "RUN_TRIGGER_")
		if r.GetDryRun() {
			by += " (dry)"
		}
		if n := r.GetFolded(); n > 0 { // alike, and none of them did anything
			by += fmt.Sprintf(" ×%d", n+1)
		}
		style, known := styles[r.GetState()]
		if !known {
			style = table.Red
		}
		text := func(s string) table.Cell { return table.Cell{Text: s} }
		t.Add(table.Cell{Text: r.GetId(), Style: table.Bold}, table.Cell{Text: word(r.GetState(), "RUN_STATE_"), Style: style}, text(by), text(show.Ago(r.GetStartTime(), c.now)), text(took),
			text(fmt.Sprint(r.GetRemoved().GetManifests())), text(fmt.Sprint(r.GetRemoved().GetBlobs())), text(human.Size(r.GetRemoved().GetSizeBytes())),
			text(human.Size(r.GetWaiting().GetSizeBytes())), text(fmt.Sprint(r.GetBrokenManifests())), text(r.GetError().GetMessage()))
	}
	return t.Write(c.out, c.term)
}

func (c *call) oneRun(ctx context.Context, id string, limit int, format string) error {
	var run *janitorv1.Run
	var all []*janitorv1.Verdict
	req := &janitorv1.GetRunRequest{RunId: id}
	for {
		req.PageSize = show.PageSize(limit, len(all))
		res, err := c.api.GetRun(ctx, req)
		if err != nil {
			return err
		}
		run, all = res.GetRun(), append(all, res.GetVerdicts()...)
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" || len(all) == limit {
			break
		}
	}
	if format == "json" {
		if err := show.JSON(c.out, run); err != nil {
			return err
		}
		return show.JSONLines(c.out, all)
	}
	if err := c.writeRuns([]*janitorv1.Run{run}); err != nil || len(all) == 0 {
		return err
	}
	if _, err := fmt.Fprintln(c.out); err != nil {
		return err
	}
	return writeVerdicts(c.out, all)
}
