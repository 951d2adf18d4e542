package janitor

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/human"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

const filterHelp = "this AIP-160 `expression` on run_id, kind, digest, repository, tag and quarantine_time"

func quarantineCommand(conn *connect.Flags) *cobra.Command {
	var filter, format string
	var limit int
	cmd := &cobra.Command{
		Use:   "quarantine",
		Short: "List what runs have removed and can still be brought back",
		Example: `  kiln janitor quarantine
  kiln janitor quarantine --filter 'repository = "cache/web" AND kind = MANIFEST' --format json`,
		Args: cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error { return c.quarantine(ctx, filter, limit, format) }),
	}
	cmd.Flags().StringVar(&filter, "filter", "", "only what fits "+filterHelp)
	cmd.Flags().IntVar(&limit, "limit", 50, "at most so many; 0: all")
	show.AddFormat(cmd, &format, "text, or json: one entry a line")
	return cmd
}

func (c *call) quarantine(ctx context.Context, filter string, limit int, format string) error {
	var all []*janitorv1.QuarantineEntry
	var total *janitorv1.Amount
	req := &janitorv1.ListQuarantineRequest{Filter: filter}
	for {
		req.PageSize = show.PageSize(limit, len(all))
		res, err := c.api.ListQuarantine(ctx, req)
		if err != nil {
			return err
		}
		all, total = append(all, res.GetEntries()...), res.GetTotal()
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" || len(all) == limit {
			break
		}
	}
	if format == "json" {
		return show.JSONLines(c.out, all)
	}
	if err := c.writeEntries(all); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.out, "\nin quarantine: %s\n", amount(total))
	return err
}

func (c *call) writeEntries(all []*janitorv1.QuarantineEntry) error {
	t := table.Table{Header: []string{"ENTRY", "WHAT", "SIZE", "REMOVED", "GOES FOR GOOD", "WHY"}, GiveWay: 1}
	for _, e := range all {
		left := "soon"
		if d := e.GetPurgeTime().AsTime().Sub(c.now); d > 0 {
			left = "in " + human.Span(d)
		}
		text := func(s string) table.Cell { return table.Cell{Text: s} }
		t.Add(table.Cell{Text: e.GetId(), Style: table.Bold}, text(word(e.GetItem().GetKind(), "ITEM_KIND_")+" "+name(e.GetItem())), text(human.Size(e.GetItem().GetSizeBytes())),
			text(show.Ago(e.GetQuarantineTime(), c.now)), text(left), text(word(e.GetReason(), "VERDICT_REASON_")))
	}
	return t.Write(c.out, c.term)
}

func restoreCommand(conn *connect.Flags) *cobra.Command {
	var run, filter, format string
	var dry bool
	cmd := &cobra.Command{
		Use:   "restore [ENTRY...]",
		Short: "Bring things back from quarantine, with all that they need",
		Long: `Brings entries of the quarantine back, all that one run removed, or what a filter matches:
manifests with their tags, and all blobs that they need. What the registry has meanwhile is
not overwritten. What came back counts as pushed now.`,
		Example: `  kiln janitor restore --run 01a22390-…
  kiln janitor restore --filter 'repository = "cache/web"'
  kiln janitor restore 01a22390-…-7 --check`,
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			req := &janitorv1.RestoreRequest{ValidateOnly: dry}
			switch {
			case len(args) > 0 && run == "" && filter == "":
				req.What = &janitorv1.RestoreRequest_Entries{Entries: &janitorv1.QuarantineEntries{Ids: args}}
			case len(args) == 0 && run != "" && filter == "":
				req.What = &janitorv1.RestoreRequest_RunId{RunId: run}
			case len(args) == 0 && run == "" && filter != "":
				req.What = &janitorv1.RestoreRequest_Filter{Filter: filter}
			default:
				return fault.New(fault.InvalidArgument, "", "what to restore is not clear", "name entries, or --run, or --filter: one of the three; kiln janitor quarantine lists what there is")
			}
			res, err := c.api.Restore(ctx, req)
			if err != nil {
				return err
			}
			if format == "json" {
				return show.JSON(c.out, res)
			}
			verb := "restored"
			if dry {
				verb = "would restore"
			}
			_, err = fmt.Fprintf(c.out, "%s %s\n", verb, amount(res.GetRestored()))
			if p := res.GetPresent(); err == nil && p.GetManifests()+p.GetBlobs() > 0 {
				_, err = fmt.Fprintf(c.out, "there already, and left as it is: %s\n", amount(p))
			}
			if refs := res.GetReferences(); err == nil && len(refs) > 0 {
				_, err = fmt.Fprintln(c.out, strings.Join(refs, "\n"))
			}
			return err
		}),
	}
	cmd.Flags().StringVar(&run, "run", "", "all that the run of this `id` removed")
	cmd.Flags().StringVar(&filter, "filter", "", filterHelp)
	cmd.Flags().BoolVar(&dry, "check", false, "only say what would come back")
	show.AddFormat(cmd, &format, "text, or json: a kiln.janitor.v1.RestoreResponse")
	return cmd
}

func purgeCommand(conn *connect.Flags) *cobra.Command {
	var filter, format string
	var force bool
	cmd := &cobra.Command{
		Use:   "purge",
		Short: "Remove things from quarantine for good, before their time",
		Long: `Removes what is in quarantine for good, and with it the way back. Without --force it counts
what would go, and shows some.`,
		Example: `  kiln janitor purge
  kiln janitor purge --filter 'run_id = "01a22390-…"' --force`,
		Args: cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error {
			res, err := c.api.Purge(ctx, &janitorv1.PurgeRequest{Filter: filter, Force: force})
			if err != nil {
				return err
			}
			if format == "json" {
				return show.JSON(c.out, res)
			}
			if force {
				_, err = fmt.Fprintf(c.out, "purged %s\n", amount(res.GetPurged()))
				return err
			}
			if err := c.writeEntries(res.GetSample()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "\nwould purge %s; --force really does\n", amount(res.GetPurged()))
			return err
		}),
	}
	cmd.Flags().StringVar(&filter, "filter", "*", filterHelp+`; "*" is all`)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "really remove")
	show.AddFormat(cmd, &format, "text, or json: a kiln.janitor.v1.PurgeResponse")
	return cmd
}
