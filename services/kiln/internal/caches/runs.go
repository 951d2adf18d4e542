package caches

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
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
		Long: `Lists the runs of the policy, newest first, those of the schedule included; with an ID,
shows one of them with what became of each record. Runs of the schedule that removed nothing and
went the same way are shown as one. With --format json each line is a
kiln.cachemanager.v1.Run, or a Verdict.`,
		Example: `  kiln cache runs
  kiln cache runs --filter 'trigger = FREE_DISK AND state = SUCCEEDED'
  kiln cache runs 4f3c1a2e-… --format json`,
		Args: cobra.MaximumNArgs(1),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			if len(args) == 1 {
				return c.run(ctx, args[0], limit, format)
			}
			return c.runs(ctx, filter, limit, format)
		}),
	}
	cmd.Flags().StringVar(&filter, "filter", "", "only runs that fit this AIP-160 `expression` on state, trigger, dry_run, start_time and daemon")
	cmd.Flags().IntVar(&limit, "limit", 20, "at most so many runs, or records of one; 0: all")
	show.AddFormat(cmd, &format, "text, or json: one object a line")
	return cmd
}

func (c *call) runs(ctx context.Context, filter string, limit int, format string) error {
	var all []*cachemanagerv1.Run
	req := &cachemanagerv1.ListRunsRequest{Filter: filter}
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
	return writeRuns(c.out, c.term, all, c.now)
}

func runStyle(s cachemanagerv1.RunState) table.Style {
	switch s {
	case cachemanagerv1.RunState_RUN_STATE_SUCCEEDED:
		return table.Green
	case cachemanagerv1.RunState_RUN_STATE_RUNNING:
		return table.Cyan
	case cachemanagerv1.RunState_RUN_STATE_PARTIAL:
		return table.Yellow
	default:
		return table.Red
	}
}

func writeRuns(w io.Writer, term table.Terminal, runs []*cachemanagerv1.Run, now time.Time) error {
	t := table.Table{Header: []string{"RUN", "STATE", "BY", "STARTED", "TOOK", "REMOVED", "FREED", "RULES", "ERROR"}, GiveWay: 2}
	for _, r := range runs {
		took := "-"
		if r.GetEndTime() != nil {
			took = show.Lasted(r.GetEndTime().AsTime().Sub(r.GetStartTime().AsTime()))
		}
		by := word(r.GetTrigger(), "RUN_TRIGGER_")
		if r.GetDryRun() {
			by += " (dry)"
		}
		if n := r.GetFolded(); n > 0 {
			by += fmt.Sprintf(" (and %d like it since %s)", n, show.Ago(r.GetFoldedStartTime(), now))
		}
		t.Add(
			table.Cell{Text: r.GetId(), Style: table.Bold}, table.Cell{Text: word(r.GetState(), "RUN_STATE_"), Style: runStyle(r.GetState())},
			table.Cell{Text: by}, table.Cell{Text: show.Ago(r.GetStartTime(), now)}, table.Cell{Text: took},
			count(r.GetRemoved().GetRecords()), bytes(r.GetRemoved().GetSizeBytes()), table.Cell{Text: rulesOf(r)}, table.Cell{Text: r.GetError().GetMessage()},
		)
	}
	return t.Write(w, term)
}

// rulesOf is what each rule removed: "age 3, size 1".
func rulesOf(r *cachemanagerv1.Run) string {
	var all []string
	for _, rule := range r.GetRules() {
		if n := rule.GetAmount().GetRecords(); n > 0 {
			all = append(all, fmt.Sprintf("%s %d", rule.GetRule(), n))
		}
	}
	return strings.Join(all, ", ")
}

func (c *call) run(ctx context.Context, id string, limit int, format string) error {
	var run *cachemanagerv1.Run
	var all []*cachemanagerv1.Verdict
	req := &cachemanagerv1.GetRunRequest{RunId: id}
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
	if err := writeRuns(c.out, c.term, []*cachemanagerv1.Run{run}, c.now); err != nil || len(all) == 0 {
		return err
	}
	if _, err := fmt.Fprintln(c.out); err != nil {
		return err
	}
	return writeVerdicts(c.out, c.term, all)
}
