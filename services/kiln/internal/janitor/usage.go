package janitor

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/human"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

func usageCommand(conn *connect.Flags) *cobra.Command {
	var repositories []string
	var limit int
	var rules bool
	var format string
	cmd := &cobra.Command{
		Use:     "usage",
		Aliases: []string{"du"},
		Short:   "Show what the registry holds, by repository",
		Long: `Shows the repositories of the registry, the largest first: the bytes that their tags reach, and
of these what only they do, which is freed when the repository goes. With --rules it also
shows what each rule of the policy would free now. With --format json it is the
kiln.janitor.v1.GetUsageResponse.`,
		Example: `  kiln janitor usage
  kiln janitor usage --repository 'cache/*'
  kiln janitor usage --rules`,
		Args: cobra.NoArgs,
		RunE: conn.RunE(func(cmd *cobra.Command, cc *grpc.ClientConn, _ []string) error {
			if limit < 1 || limit > show.LargestPage {
				return fault.New(fault.InvalidArgument, "", fmt.Sprintf("--limit is %d", limit), fmt.Sprintf("give 1 to %d", show.LargestPage))
			}
			res, err := janitorv1.NewJanitorServiceClient(cc).GetUsage(cmd.Context(), &janitorv1.GetUsageRequest{
				Repositories: repositories, PageSize: int32(limit), WithRules: rules, //nolint:gosec // within bounds
			})
			if err != nil {
				return err
			}
			if format == "json" {
				return show.JSON(cmd.OutOrStdout(), res)
			}
			return writeUsage(cmd.OutOrStdout(), res)
		}),
	}
	cmd.Flags().StringSliceVar(&repositories, "repository", nil, "only these `repositories`, with * at the end as a wildcard (default: all)")
	cmd.Flags().IntVar(&limit, "limit", 50, "at most so many repositories")
	cmd.Flags().BoolVar(&rules, "rules", false, "also what each rule of the policy would free now")
	show.AddFormat(cmd, &format, "text or json")
	return cmd
}

func writeUsage(out io.Writer, res *janitorv1.GetUsageResponse) error {
	t := table.Table{Header: []string{"REPOSITORY", "TAGS", "MANIFESTS", "BLOBS", "SIZE", "ONLY HERE", "BROKEN"}}
	number := func(n int64) table.Cell { return table.Cell{Text: strconv.FormatInt(n, 10)} }
	for _, r := range res.GetRepositories() {
		name := table.Cell{Text: r.GetRepository(), Style: table.Bold}
		if r.GetError() != nil {
			t.Add(name, table.Cell{Text: r.GetError().GetMessage(), Style: table.Red})
			continue
		}
		broken := number(r.GetBrokenManifests())
		if r.GetBrokenManifests() > 0 {
			broken.Style = table.Red
		}
		t.Add(name, number(r.GetTags()), number(r.GetManifests()), number(r.GetBlobs()),
			table.Cell{Text: human.Size(r.GetOwnBytes())}, table.Cell{Text: human.Size(r.GetExclusiveBytes())}, broken)
	}
	if err := t.Write(out, table.TerminalOf(out)); err != nil {
		return err
	}
	total := res.GetTotal()
	text := fmt.Sprintf("\n%d repositories, %d tags, %s", total.GetRepositories(), total.GetTags(), human.Size(total.GetDeduplicatedBytes()))
	if s := total.GetStorage(); s != nil && s.GetError() == nil {
		text += fmt.Sprintf("; on the disk %s, of which no tag reaches %s; %s of %s free", human.Size(s.GetBlobBytes()), human.Size(s.GetUntaggedBytes()),
			human.Size(s.GetDisk().GetFreeBytes()), human.Size(s.GetDisk().GetTotalBytes()))
	}
	if n := total.GetStorage().GetQuarantineBytes(); n > 0 {
		text += "; in quarantine " + human.Size(n)
	}
	if f := total.GetForecast(); f != nil {
		text += fmt.Sprintf("\ngrows by %s a day", human.Size(f.GetGrowthBytesPerDay()))
		if f.GetFullTime() != nil {
			text += ", and the disk is full on " + f.GetFullTime().AsTime().Format("2006-01-02")
		}
	}
	for _, r := range res.GetRules() {
		text += fmt.Sprintf("\nrule %s would free %s", r.GetRule(), amount(r.GetAmount()))
	}
	_, err := fmt.Fprintln(out, text)
	return err
}
