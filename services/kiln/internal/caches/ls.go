package caches

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

func lsCommand(conn *connect.Flags) *cobra.Command {
	var caches []string
	var filter, order, format string
	var limit int
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list", "records"},
		Short:   "List the records of the caches, the longest unused first",
		Long: `Lists the records of the caches, the longest unused first. With --format json each
line is a kiln.cachemanager.v1.Record.`,
		Example: `  kiln cache ls
  kiln cache ls --order-by 'size_bytes desc' --limit 10
  kiln cache ls --filter 'type = EXEC_CACHE_MOUNT AND age > "48h"'
  kiln cache ls --cache local --limit 0 --format json`,
		Args: cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error {
			var all []*cachemanagerv1.Record
			req := &cachemanagerv1.ListRecordsRequest{Caches: refs(caches), Filter: filter, OrderBy: order}
			for {
				req.PageSize = show.PageSize(limit, len(all))
				res, err := c.api.ListRecords(ctx, req)
				if err != nil {
					return err
				}
				for _, m := range res.GetMissed() {
					c.missed(m)
				}
				all = append(all, res.GetRecords()...)
				if req.PageToken = res.GetNextPageToken(); req.PageToken == "" || len(all) == limit {
					break
				}
			}
			if format == "json" {
				return show.JSONLines(c.out, all)
			}
			if err := writeRecords(c.out, c.term, all, c.now); err != nil || req.GetPageToken() == "" {
				return err
			}
			_, err := fmt.Fprintln(c.errOut, "there are more: --limit 0 lists all")
			return err
		}),
	}
	addCaches(cmd, &caches)
	cmd.Flags().StringVar(&filter, "filter", "", "only records that fit this AIP-160 `expression` on type, age, size_bytes, description, daemon, projects, in_use and so on")
	cmd.Flags().StringVar(&order, "order-by", "", "`order` by last_use_time, create_time, size_bytes or usage_count, each with desc or not")
	cmd.Flags().IntVar(&limit, "limit", 50, "at most so many records; 0: all")
	show.AddFormat(cmd, &format, "text, or json: one object a line")
	return cmd
}

// pageOf is the size of the next page for a list that is to have limit items.
// missed says on the side that a cache is not in what is shown.
func (c *call) missed(m *cachemanagerv1.MissedCache) {
	// What cannot be told cannot be told of either.
	_, _ = fmt.Fprintf(c.errOut, "missing: cache %s: %s\n", place(m.GetCache()), m.GetError().GetMessage())
}

func writeRecords(w io.Writer, term table.Terminal, records []*cachemanagerv1.Record, now time.Time) error {
	t := table.Table{Header: []string{"CACHE", "RECORD", "TYPE", "SIZE", "LAST USED", "USES", "STATE", "FROM"}, GiveWay: 1}
	for _, r := range records {
		used := r.GetLastUseTime()
		if used == nil {
			used = r.GetCreateTime()
		}
		state := table.Cell{Text: "-"}
		switch {
		case r.GetInUse():
			state = table.Cell{Text: "in use", Style: table.Cyan}
		case len(r.GetPins()) > 0:
			state = table.Cell{Text: "pinned", Style: table.Green}
		case r.GetShared():
			state = table.Cell{Text: "shared"}
		}
		t.Add(
			table.Cell{Text: place(r.GetCache())}, table.Cell{Text: r.GetId(), Style: table.Bold}, table.Cell{Text: typeWord(r.GetType())},
			bytes(r.GetSizeBytes()), table.Cell{Text: show.Ago(used, now)}, count(r.GetUsageCount()), state, table.Cell{Text: r.GetDescription()},
		)
	}
	return t.Write(w, term)
}
