package caches

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"

	"github.com/spf13/cobra"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

func duCommand(conn *connect.Flags) *cobra.Command {
	var caches []string
	var format, by string
	cmd := &cobra.Command{
		Use:     "du",
		Aliases: []string{"usage"},
		Short:   "Show what the caches hold, by type, project or image",
		Long: `Shows what each cache holds now, by the type of its records, beside what the policy
lets it hold. Uncounted are bytes on the disk that are in no record, such as databases and what builds
left that were killed: no policy removes them, and all includes them. Or by project, with how many steps of its builds of the last 7 days were found
in a cache; or by image. Projects and images are known of builds that a builder with a
cache_manager has made. With --format json it is the kiln.cachemanager.v1.Usage.`,
		Example: `  kiln cache du
  kiln cache du --by project
  kiln cache du --cache local --format json`,
		Args: cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error {
			res, err := c.api.GetUsage(ctx, &cachemanagerv1.GetUsageRequest{Caches: refs(caches)})
			if err != nil {
				return err
			}
			if format == "json" {
				return show.JSON(c.out, res.GetUsage())
			}
			return writes[strings.ToLower(by)](c.out, c.term, res.GetUsage())
		}),
	}
	cmd.Flags().StringVar(&by, "by", "type", "what to add up by: type, project or image")
	show.Choice(cmd, "by", []string{"type", "project", "image"})
	addCaches(cmd, &caches)
	show.AddFormat(cmd, &format, "text or json")
	return cmd
}

// writes are the tables by what they add up by.
var writes = map[string]func(io.Writer, table.Terminal, *cachemanagerv1.Usage) error{
	"type": writeUsage, "project": writeProjects, "image": writeImages,
}

func writeProjects(w io.Writer, term table.Terminal, u *cachemanagerv1.Usage) error {
	t := table.Table{Header: []string{"PROJECT", "RECORDS", "SIZE", "IN USE", "STEPS FOUND IN A CACHE"}}
	for _, p := range u.GetProjects() {
		name := table.Cell{Text: p.GetProject(), Style: table.Bold}
		if name.Text == "" {
			name = table.Cell{Text: "(not known)"}
		}
		hits := "-"
		if all := p.GetTotalSteps(); all > 0 {
			hits = fmt.Sprintf("%d of %d (%d %%)", p.GetCachedSteps(), all, 100*p.GetCachedSteps()/all)
		}
		t.Add(name, count(p.GetTotal().GetRecords()), bytes(p.GetTotal().GetSizeBytes()), bytes(p.GetTotal().GetInUseBytes()), table.Cell{Text: hits})
	}
	return t.Write(w, term)
}

func writeImages(w io.Writer, term table.Terminal, u *cachemanagerv1.Usage) error {
	t := table.Table{Header: []string{"CACHE", "IMAGE", "RECORDS", "SIZE", "IN USE"}}
	for _, c := range u.GetCaches() {
		name := table.Cell{Text: place(c.GetCache()), Style: table.Bold}
		for _, i := range c.GetImages() {
			t.Add(name, table.Cell{Text: i.GetImage()}, count(i.GetTotal().GetRecords()), bytes(i.GetTotal().GetSizeBytes()), bytes(i.GetTotal().GetInUseBytes()))
			name.Text = ""
		}
	}
	return t.Write(w, term)
}

func writeUsage(w io.Writer, term table.Terminal, u *cachemanagerv1.Usage) error {
	t := table.Table{Header: []string{"CACHE", "TYPE", "RECORDS", "SIZE", "IN USE", "LIMIT", "DISK FREE"}}
	for _, c := range u.GetCaches() {
		name := table.Cell{Text: place(c.GetCache()), Style: table.Bold}
		if c.GetError() != nil {
			t.Add(name, table.Cell{Text: "away: " + c.GetError().GetMessage(), Style: table.Red})
			continue
		}
		var uncounted int64
		for _, of := range c.GetTypes() {
			if of.GetType() == cachemanagerv1.RecordType_RECORD_TYPE_UNCOUNTED {
				uncounted = of.GetTotal().GetSizeBytes()
				continue
			}
			t.Add(name, table.Cell{Text: typeWord(of.GetType())}, count(of.GetTotal().GetRecords()), bytes(of.GetTotal().GetSizeBytes()), bytes(of.GetTotal().GetInUseBytes()))
			name.Text = ""
		}
		records, limit := c.GetTotal(), table.Cell{Text: limits(c)}
		if uncounted > 0 { // which the policy does not see, and so its limit is not of all
			t.Add(name, table.Cell{Text: "records"}, count(records.GetRecords()), bytes(records.GetSizeBytes()), bytes(records.GetInUseBytes()), limit)
			t.Add(table.Cell{}, table.Cell{Text: "uncounted"}, table.Cell{Text: "-"}, bytes(uncounted), table.Cell{Text: "-"})
			name.Text, limit.Text = "", "-"
		}
		t.Add(name, table.Cell{Text: "all", Style: table.Bold}, count(records.GetRecords()), bytes(records.GetSizeBytes()+uncounted),
			bytes(records.GetInUseBytes()), limit, table.Cell{Text: free(c)})
	}
	if err := t.Write(w, term); err != nil {
		return err
	}
	return writeOffsets(w, u)
}

// writeOffsets says which daemons have another time.
func writeOffsets(w io.Writer, u *cachemanagerv1.Usage) error {
	for _, c := range u.GetCaches() {
		by, side := c.GetClockOffset().AsDuration(), "ahead"
		if by < 0 {
			by, side = -by, "behind"
		}
		if by == 0 {
			continue
		}
		_, err := fmt.Fprintf(w, "the clock of %s is %s %s; times and ages of its records are corrected by that\n", place(c.GetCache()), by.Round(time.Second), side)
		if err != nil {
			return err
		}
	}
	return nil
}

func count(n int64) table.Cell { return table.Cell{Text: fmt.Sprint(n)} }

func bytes(n int64) table.Cell { return table.Cell{Text: human.Size(n)} }

// limits is what the policy lets a cache hold: "100 GB, 2d".
func limits(c *cachemanagerv1.CacheUsage) string {
	text := "-"
	if c.LimitBytes != nil {
		text = human.Size(c.GetLimitBytes())
	}
	if c.GetLimitAge() != nil {
		text += ", " + human.Span(c.GetLimitAge().AsDuration())
	}
	return text
}

// free is what is free of the disk, and when it is full if the cache goes on as it does.
func free(c *cachemanagerv1.CacheUsage) string {
	d, f := c.GetDisk(), c.GetForecast()
	text := "-"
	if d != nil {
		text = fmt.Sprintf("%s of %s", human.Size(d.GetFreeBytes()), human.Size(d.GetTotalBytes()))
	}
	switch {
	case f == nil:
	case f.GetFullTime() != nil:
		text += fmt.Sprintf(", full in %s (%s a day)", human.Span(f.GetFullTime().AsTime().Sub(c.GetTime().AsTime())), human.Size(f.GetGrowthBytesPerDay()))
	case f.GetGrowthBytesPerDay() > 0:
		text += fmt.Sprintf(", %s a day", human.Size(f.GetGrowthBytesPerDay()))
	}
	return text
}
