package janitor

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/human"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/policyfile"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

type planOptions struct {
	repositories []string
	policy       string
	in           time.Duration
	kept         bool
	limit        int
	format       string
}

func planCommand(conn *connect.Flags) *cobra.Command {
	o := &planOptions{}
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show what a run would remove from the registry now, and why",
		Long: `Shows what the policy in force, or the one of a file, would remove now: each manifest in the
order of its going, with the rule, the reason and the bytes that it frees; then what
nothing reaches. With --kept it also shows what stays, and why. Nothing is changed.

With --format json the first line is the kiln.janitor.v1.Plan, and each further one a
Verdict.`,
		Example: `  kiln janitor plan
  kiln janitor plan --repository 'cache/**' --in 24h
  kiln janitor plan --policy stricter.yaml --kept --limit 0`,
		Args: cobra.NoArgs,
		RunE: conn.RunE(func(cmd *cobra.Command, cc *grpc.ClientConn, _ []string) error {
			return o.plan(cmd, janitorv1.NewJanitorServiceClient(cc))
		}),
	}
	cmd.Flags().StringSliceVar(&o.repositories, "repository", nil, "only these `repositories`: globs, as in a policy (default: all)")
	cmd.Flags().StringVar(&o.policy, "policy", "", "plan by the policy in this `file` (YAML; - is standard input), not by the one in force")
	show.AddDuration(cmd.Flags(), &o.in, "in", "what will go by then, a `time` from now, such as 24h or 7d, if nothing is used meanwhile")
	cmd.Flags().BoolVar(&o.kept, "kept", false, "also show what stays, and why")
	cmd.Flags().IntVar(&o.limit, "limit", 50, "at most so many lines; 0: all")
	show.AddFormat(cmd, &o.format, "text, or json: one object a line")
	return cmd
}

func (o *planOptions) plan(cmd *cobra.Command, api janitorv1.JanitorServiceClient) error {
	req := &janitorv1.PlanRunRequest{Repositories: o.repositories, WithKept: o.kept, PageSize: show.PageSize(o.limit, 0)}
	if o.in > 0 {
		req.At = timestamppb.New(time.Now().Add(o.in))
	}
	if o.policy != "" {
		req.Policy = &janitorv1.Policy{}
		if err := policyfile.Read(cmd.InOrStdin(), o.policy, req.Policy, "docs/guides/operator.md has one that holds"); err != nil {
			return err
		}
	}
	var plan *janitorv1.Plan
	var all []*janitorv1.Verdict
	for {
		res, err := api.PlanRun(cmd.Context(), req)
		if err != nil {
			return err
		}
		plan, all = res.GetPlan(), append(all, res.GetVerdicts()...)
		if res.GetNextPageToken() == "" || o.limit > 0 && len(all) >= o.limit {
			break
		}
		req = &janitorv1.PlanRunRequest{PageToken: res.GetNextPageToken()}
	}
	if o.limit > 0 {
		all = all[:min(len(all), o.limit)]
	}
	out := cmd.OutOrStdout()
	if o.format == "json" {
		if err := show.JSON(out, plan); err != nil {
			return err
		}
		for _, v := range all {
			if err := show.JSON(out, v); err != nil {
				return err
			}
		}
		return nil
	}
	goes := plan.GetRemove()
	err := writePlan(out, cmd.ErrOrStderr(), plan, all)
	if err != nil || o.in > 0 || goes.GetManifests()+goes.GetBlobs()+goes.GetUploads() == 0 {
		return err
	}
	_, err = fmt.Fprintf(out, "to do just this, within %s: kiln janitor run%s --plan %s --force\n",
		human.Span(plan.GetExpireTime().AsTime().Sub(plan.GetCreateTime().AsTime())), reached(cmd), plan.GetDigest())
	return err
}

func writePlan(out, errOut io.Writer, plan *janitorv1.Plan, all []*janitorv1.Verdict) error {
	for _, w := range plan.GetWarnings() {
		if _, err := fmt.Fprintln(errOut, "warning:", w); err != nil {
			return err
		}
	}
	if len(all) > 0 {
		if err := writeVerdicts(out, all); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out); err != nil {
			return err
		}
	}
	text := "goes: " + amount(plan.GetRemove())
	var byRule []string
	for _, r := range plan.GetRules() {
		if r.GetAmount().GetManifests() > 0 {
			byRule = append(byRule, r.GetRule()+" "+amount(r.GetAmount()))
		}
	}
	if len(byRule) > 0 {
		text += " (" + strings.Join(byRule, "; ") + ")"
	}
	_, err := fmt.Fprintf(out, "%s\nstays: %s\n", text, amount(plan.GetKeep()))
	return err
}

func amount(a *janitorv1.Amount) string {
	text := fmt.Sprintf("%d manifests and %d blobs, %s", a.GetManifests(), a.GetBlobs(), human.Size(a.GetSizeBytes()))
	if a.GetUploads() > 0 {
		text += fmt.Sprintf(", %d uploads", a.GetUploads())
	}
	return text
}

func writeVerdicts(out io.Writer, all []*janitorv1.Verdict) error {
	t := table.Table{Header: []string{"", "REPOSITORY", "WHAT", "DIGEST", "TAGS", "FREES", "UNUSED", "RULE", "WHY"}, GiveWay: 1}
	for _, v := range all {
		item := v.GetItem()
		mark := table.Cell{Text: "keep", Style: table.Green}
		if v.GetAction() == janitorv1.VerdictAction_VERDICT_ACTION_REMOVE {
			mark = table.Cell{Text: "remove", Style: table.Red}
		}
		what := word(item.GetKind(), "ITEM_KIND_")
		if of := item.GetManifestKind(); of != janitorv1.ManifestKind_MANIFEST_KIND_UNSPECIFIED {
			what = word(of, "MANIFEST_KIND_")
		}
		t.Add(mark, table.Cell{Text: item.GetRepository()}, table.Cell{Text: what}, table.Cell{Text: short(item.GetDigest()), Style: table.Bold},
			table.Cell{Text: strings.Join(item.GetTags(), ",")}, table.Cell{Text: human.Size(v.GetFreesBytes())},
			table.Cell{Text: human.Span(v.GetAge().AsDuration())}, table.Cell{Text: v.GetRule()}, table.Cell{Text: v.GetExplanation()})
	}
	return t.Write(out, table.TerminalOf(out))
}

// short is a digest that a person can tell from others.
func short(digest string) string {
	if hex, ok := strings.CutPrefix(digest, "sha256:"); ok && len(hex) > 12 {
		return hex[:12]
	}
	return digest
}
