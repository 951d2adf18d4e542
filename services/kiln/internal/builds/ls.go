package builds

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

type lsOptions struct {
	states  []string
	project string
	tag     string
	since   string
	filter  string
	orderBy string
	limit   int
	format  string
}

func lsCommand(conn *connect.Flags) *cobra.Command {
	o := &lsOptions{}
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List builds, newest first",
		Long: `Lists builds, newest first. What is named with several flags must all be true of a
build. With --format json each line is a kiln.builder.v1.BuildRecord.`,
		Example: `  kiln builds ls
  kiln builds ls --state queued,running
  kiln builds ls --state failed --project web --since 24h
  kiln builds ls --tag localhost:5000/web --limit 0 --format json
  kiln builds ls --filter 'origin = GATEWAY AND daemon = "build-1"' --order-by 'project, create_time desc'`,
		Args: cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error { return c.ls(ctx, o) }),
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&o.states, "state", nil, "only builds in these `states`: "+strings.Join(states, ", "))
	flags.StringVar(&o.project, "project", "", "only builds of this `project`")
	flags.StringVar(&o.tag, "tag", "", "only builds that push to a `reference` that begins so")
	flags.StringVar(&o.since, "since", "", "only builds that came since then: a `time` like 2026-11-01T00:00:00Z, or a span until now like 90m, 24h or 7d")
	flags.StringVar(&o.filter, "filter", "", "only builds that fit this AIP-160 `expression` on state, project, origin, create_time, end_time, tag, caller and daemon")
	flags.StringVar(&o.orderBy, "order-by", "", "`order` by create_time, end_time, project or state, each with desc or not (default: newest first)")
	flags.IntVar(&o.limit, "limit", 50, "at most so many builds; 0: all")
	show.AddFormat(cmd, &o.format, "text, or json: one object a line")
	show.Choice(cmd, "state", states)
	completeProject(cmd, conn)
	return cmd
}

// maxPage is the contract's bound on a page.
const maxPage = 1000

func (c *call) ls(ctx context.Context, o *lsOptions) error {
	filter, err := o.expression(c.now)
	if err != nil {
		return err
	}
	var all []*builderv1.BuildRecord
	req := &builderv1.ListBuildsRequest{Filter: filter, OrderBy: o.orderBy}
	for {
		req.PageSize = maxPage
		if o.limit > 0 {
			req.PageSize = int32(min(maxPage, o.limit-len(all))) //nolint:gosec // at most a page
		}
		res, err := c.API().ListBuilds(ctx, req)
		if err != nil {
			return err
		}
		if o.format == "json" {
			for _, b := range res.GetBuilds() {
				if err := show.JSON(c.out, b); err != nil {
					return err
				}
			}
		}
		all = append(all, res.GetBuilds()...)
		req.PageToken = res.GetNextPageToken()
		if req.PageToken == "" || len(all) == o.limit {
			break
		}
	}
	if o.format == "json" {
		return nil
	}
	if len(all) == 0 {
		return c.none(filter)
	}
	if err := writeBuilds(c.out, c.term, all, c.now); err != nil || req.PageToken == "" {
		return err
	}
	_, err = fmt.Fprintf(c.errOut, "there are more: --limit 0 lists all\n")
	return err
}

// none says that there is nothing to list, and what to do.
func (c *call) none(filter string) error {
	text := "no builds yet: `kiln build` makes one"
	if filter != "" {
		text = "no builds fit; without flags, `kiln builds ls` lists the newest ones"
	}
	_, err := fmt.Fprintln(c.errOut, text)
	return err
}

// expression makes one AIP-160 filter of the flags.
func (o *lsOptions) expression(now time.Time) (string, error) {
	var terms []string
	if len(o.states) > 0 {
		var either []string
		for _, state := range o.states {
			either = append(either, "state = "+strings.ToUpper(state))
		}
		terms = append(terms, "("+strings.Join(either, " OR ")+")")
	}
	if o.project != "" {
		terms = append(terms, "project = "+strconv.Quote(o.project))
	}
	if o.tag != "" {
		terms = append(terms, "tag:"+strconv.Quote(o.tag))
	}
	if o.since != "" {
		since, err := parseSince(o.since, now)
		if err != nil {
			return "", err
		}
		terms = append(terms, "create_time >= "+strconv.Quote(since.UTC().Format(time.RFC3339Nano)))
	}
	if o.filter != "" {
		terms = append(terms, "("+o.filter+")")
	}
	return strings.Join(terms, " AND "), nil
}

// parseSince reads a time, or a span before now.
func parseSince(text string, now time.Time) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, -int(n)), nil //nolint:gosec // at most 65535
		}
	}
	if span, err := time.ParseDuration(text); err == nil && span >= 0 {
		return now.Add(-span), nil
	}
	return time.Time{}, fault.New(fault.InvalidArgument, "", fmt.Sprintf("--since is %q", text), "write it like 90m, 24h, 7d, 2026-11-01 or 2026-11-01T08:00:00Z")
}

// writeBuilds writes a table of builds. Ids are short on a terminal, and whole
// where programs read.
func writeBuilds(w io.Writer, term table.Terminal, builds []*builderv1.BuildRecord, now time.Time) error {
	t := table.Table{Header: []string{"BUILD", "STATE", "PROJECT", "CREATED", "DURATION", "CACHED", "TAGS", "REASON"}, GiveWay: 2}
	for _, b := range builds {
		id := b.GetId()
		if term.Width > 0 {
			id = short(id)
		}
		t.Add(
			table.Cell{Text: id, Style: table.Bold},
			table.Cell{Text: stateWord(b.GetState()), Style: stateStyle(b.GetState())},
			table.Cell{Text: b.GetProject()},
			table.Cell{Text: show.Ago(b.GetCreateTime(), now)},
			table.Cell{Text: duration(b, now)},
			table.Cell{Text: cachedWord(b.GetSteps())},
			table.Cell{Text: strings.Join(b.GetTags(), ",")},
			table.Cell{Text: why(b)},
		)
	}
	return t.Write(w, term)
}

// cachedWord is how many of the steps were cached.
func cachedWord(s *builderv1.StepCounts) string {
	if s.GetTotal() == 0 {
		return "-"
	}
	return fmt.Sprintf("%d/%d", s.GetCached(), s.GetTotal())
}
