package caches

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/policyfile"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

type planOptions struct {
	caches []string
	policy string
	in     time.Duration
	daemon bool
	kept   bool
	limit  int
	format string
}

func planCommand(conn *connect.Flags) *cobra.Command {
	o := &planOptions{}
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show what a prune would remove now, and why",
		Long: `Shows what the policy in force, or the one of a file, would remove now: each record in
the order of its going, with the rule, the reason and the bytes that it frees. With
--kept it also shows what stays, and why: in use, pinned, or which younger record keeps
it. Nothing is changed. kiln cache prune --plan carries just this plan out.

With --format json the first line is the kiln.cachemanager.v1.Plan, and each further
one a Verdict.`,
		Example: `  kiln cache plan
  kiln cache plan --kept --limit 0
  kiln cache plan --in 24h
  kiln cache plan --policy stricter.yaml
  kiln cache plan --daemon-rules`,
		Args: cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error { return c.plan(ctx, o) }),
	}
	addCaches(cmd, &o.caches)
	cmd.Flags().StringVar(&o.policy, "policy", "", "plan by the policy in this `file` (YAML; - is standard input), not by the one in force")
	show.AddDuration(cmd.Flags(), &o.in, "in", "what will go by then, a `time` from now, such as 24h or 7d, if nothing is used meanwhile")
	cmd.Flags().BoolVar(&o.daemon, "daemon-rules", false, "what the daemon would remove by its own rules, those of its buildkitd.toml")
	cmd.Flags().BoolVar(&o.kept, "kept", false, "also show what stays, and why")
	cmd.Flags().IntVar(&o.limit, "limit", 50, "at most so many records; 0: all")
	show.AddFormat(cmd, &o.format, "text, or json: one object a line")
	cmd.MarkFlagsMutuallyExclusive("policy", "daemon-rules")
	return cmd
}

func (c *call) plan(ctx context.Context, o *planOptions) error {
	req := &cachemanagerv1.PlanPruneRequest{Caches: refs(o.caches), WithKept: o.kept, PageSize: show.PageSize(o.limit, 0)}
	if o.in > 0 {
		req.At = timestamppb.New(c.now.Add(o.in))
	}
	if o.daemon {
		req.By = &cachemanagerv1.PlanPruneRequest_DaemonRules{DaemonRules: &cachemanagerv1.DaemonRules{}}
	}
	if o.policy != "" {
		p, err := c.readPolicy(o.policy)
		if err != nil {
			return err
		}
		req.By = &cachemanagerv1.PlanPruneRequest_Policy{Policy: p}
	}
	var plan *cachemanagerv1.Plan
	var all []*cachemanagerv1.Verdict
	for {
		res, err := c.api.PlanPrune(ctx, req)
		if err != nil {
			return err
		}
		plan, all = res.GetPlan(), append(all, res.GetVerdicts()...)
		if res.GetNextPageToken() == "" || o.limit > 0 && len(all) >= o.limit {
			break
		}
		req = &cachemanagerv1.PlanPruneRequest{PageToken: res.GetNextPageToken()}
	}
	if o.format == "json" {
		if err := show.JSON(c.out, plan); err != nil {
			return err
		}
		return show.JSONLines(c.out, all)
	}
	for _, m := range plan.GetMissed() {
		c.missed(m)
	}
	return c.writePlan(plan, all)
}

func (c *call) writePlan(plan *cachemanagerv1.Plan, all []*cachemanagerv1.Verdict) error {
	if len(all) > 0 {
		if err := writeVerdicts(c.out, c.term, all); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(c.out); err != nil {
			return err
		}
	}
	var byRule []string
	for _, r := range plan.GetRules() {
		if r.GetAmount().GetRecords() > 0 || r.GetAmount().GetSizeBytes() > 0 {
			byRule = append(byRule, fmt.Sprintf("%s %s", r.GetRule(), amount(r.GetAmount())))
		}
	}
	text := fmt.Sprintf("goes: %s", amount(plan.GetRemove()))
	if len(byRule) > 0 {
		text += " (" + strings.Join(byRule, "; ") + ")"
	}
	text += fmt.Sprintf("\nstays: %s\n", amount(plan.GetKeep()))
	for _, r := range plan.GetRooms() {
		text += fmt.Sprintf("more may go from %s, whose disk only it knows: below %s free, until %s are (%s)\n",
			place(r.GetCache()), human.Size(r.GetLowBytes()), human.Size(r.GetHighBytes()), r.GetRule())
	}
	if (plan.GetRemove().GetRecords() > 0 || plan.GetRemove().GetSizeBytes() > 0) && plan.GetExpireTime() != nil {
		text += fmt.Sprintf("carry out: kiln cache prune --plan %s --force%s\n", plan.GetDigest(), c.args)
	}
	_, err := io.WriteString(c.out, text)
	return err
}

func amount(a *cachemanagerv1.Amount) string {
	if a.GetRecords() == 1 {
		return "1 record, " + human.Size(a.GetSizeBytes())
	}
	return fmt.Sprintf("%d records, %s", a.GetRecords(), human.Size(a.GetSizeBytes()))
}

func writeVerdicts(w io.Writer, term table.Terminal, all []*cachemanagerv1.Verdict) error {
	t := table.Table{Header: []string{"", "CACHE", "RECORD", "TYPE", "FREES", "UNUSED", "RULE", "WHY", "FROM"}, GiveWay: 2}
	for _, v := range all {
		r := v.GetRecord()
		mark := table.Cell{Text: "keep", Style: table.Green}
		switch v.GetAction() {
		case cachemanagerv1.VerdictAction_VERDICT_ACTION_REMOVE:
			mark = table.Cell{Text: "remove", Style: table.Red}
		case cachemanagerv1.VerdictAction_VERDICT_ACTION_SHRINK:
			mark = table.Cell{Text: "shrink", Style: table.Yellow}
		default:
		}
		if v.GetCertainty() == cachemanagerv1.Certainty_CERTAINTY_TIED {
			mark.Text += fmt.Sprintf(" (tie %d)", v.GetTieGroup())
		}
		t.Add(
			mark, table.Cell{Text: place(r.GetCache())}, table.Cell{Text: r.GetId(), Style: table.Bold}, table.Cell{Text: typeWord(r.GetType())},
			bytes(v.GetFreesBytes()), table.Cell{Text: human.Span(v.GetAge().AsDuration())}, table.Cell{Text: v.GetRule()},
			table.Cell{Text: v.GetExplanation()}, table.Cell{Text: r.GetDescription()},
		)
	}
	return t.Write(w, term)
}

func (c *call) readPolicy(file string) (*cachemanagerv1.Policy, error) {
	p := &cachemanagerv1.Policy{}
	return p, policyfile.Read(c.in, file, p, "kiln cache policy get"+c.args+" shows one that holds")
}

// jsonLines writes messages, one a line.
