package caches

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/config"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/policyfile"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
)

func policyCommand(conn *connect.Flags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show the policy, or replace it",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(policyGetCommand(conn), policySetCommand(conn), policyApproveCommand(conn))
	return cmd
}

func policyGetCommand(conn *connect.Flags) *cobra.Command {
	var version int64
	var format string
	cmd := &cobra.Command{
		Use:   "get",
		Short: "Show the policy in force, as YAML that policy set takes",
		Example: `  kiln cache policy get
  kiln cache policy get >policy.yaml && $EDITOR policy.yaml && kiln cache policy set policy.yaml`,
		Args: cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error {
			res, err := c.api.GetPolicy(ctx, &cachemanagerv1.GetPolicyRequest{Version: version})
			if err != nil {
				return err
			}
			if format == "json" {
				return show.JSON(c.out, res.GetPolicy())
			}
			c.tellHold("waits for approval, and", res.GetHold())
			return config.Print(c.out, res.GetPolicy())
		}),
	}
	cmd.Flags().Int64Var(&version, "version", 0, "an earlier `version`; 0: the one in force")
	show.AddFormat(cmd, &format, "text (YAML) or json")
	return cmd
}

// tellHold says on the side that a policy is not applied without approval.
func (c *call) tellHold(state string, h *cachemanagerv1.PolicyHold) {
	if h == nil {
		return
	}
	// What cannot be told on the side does not change what is shown.
	_, _ = fmt.Fprintf(c.errOut, "version %d %s version %d is applied: %s\nlook at kiln cache plan%[5]s, and approve it: kiln cache policy approve%[5]s\n",
		h.GetVersion(), state, h.GetAppliedVersion(), h.GetMessage(), c.args)
}

func policyApproveCommand(conn *connect.Flags) *cobra.Command {
	return &cobra.Command{
		Use:   "approve",
		Short: "Apply a policy that waits for approval",
		Long: `Has the schedule apply the policy in force. A new policy waits for approval when it would remove
more of a cache, beyond what the policy before it removes, than max_removal_percent in the cache manager's
configuration (default: 50). Until then the policy before it is applied. Look at kiln cache plan before.
The approved policy is a new version.`,
		Example: `  kiln cache policy get
  kiln cache plan
  kiln cache policy approve`,
		Args: cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error {
			inForce, err := c.api.GetPolicy(ctx, &cachemanagerv1.GetPolicyRequest{})
			if err != nil {
				return err
			}
			hold := inForce.GetHold()
			if hold == nil { // no run has looked at it yet, or it does not wait
				checked, err := c.api.UpdatePolicy(ctx, &cachemanagerv1.UpdatePolicyRequest{
					Source: &cachemanagerv1.UpdatePolicyRequest_Policy{Policy: inForce.GetPolicy()}, ValidateOnly: true,
				})
				if err != nil {
					return err
				}
				hold = checked.GetHold()
			}
			if hold == nil {
				_, err := fmt.Fprintf(c.out, "version %d does not wait for approval\n", inForce.GetPolicy().GetVersion())
				return err
			}
			res, err := c.api.UpdatePolicy(ctx, &cachemanagerv1.UpdatePolicyRequest{
				Source:          &cachemanagerv1.UpdatePolicyRequest_Policy{Policy: inForce.GetPolicy()},
				ExpectedVersion: inForce.GetPolicy().GetVersion(), Force: true,
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "version %d approved, as version %d\n", inForce.GetPolicy().GetVersion(), res.GetPolicy().GetVersion())
			return err
		}),
	}
}

func policySetCommand(conn *connect.Flags) *cobra.Command {
	var expected int64
	var dry, force bool
	cmd := &cobra.Command{
		Use:   "set FILE",
		Short: "Replace the policy by that of a file",
		Long: `Replaces the policy in force by that of a file, YAML with the fields of
kiln.cachemanager.v1.Policy; - is standard input. Sizes may be written like 100GB
(10^9 each) or 100GiB (2^30), ages like 48h or 7d. What is wrong is named with its line
and column, and nothing changes. The old versions are kept: policy get --version. A policy that would
remove most of a cache waits for approval: see policy approve.`,
		Example: `  kiln cache policy set policy.yaml
  kiln cache policy set policy.yaml --check
  printf 'rules:\n- name: age\n  keep: {age: 24h}\n' | kiln cache policy set -`,
		Args: cobra.ExactArgs(1),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			text, err := policyfile.Text(c.in, args[0])
			if err != nil {
				return err
			}
			res, err := c.api.UpdatePolicy(ctx, &cachemanagerv1.UpdatePolicyRequest{
				Source: &cachemanagerv1.UpdatePolicyRequest_Text{Text: text}, ExpectedVersion: expected, ValidateOnly: dry, Force: force,
			})
			if err != nil {
				return err
			}
			verb := "in force"
			switch {
			case dry:
				verb = "would be in force"
			case res.GetHold() != nil:
				verb = "kept until it is approved"
			}
			c.tellHold("will wait for approval, and meanwhile", res.GetHold())
			rules := "1 rule"
			if n := len(res.GetPolicy().GetRules()); n != 1 {
				rules = fmt.Sprintf("%d rules", n)
			}
			_, err = fmt.Fprintf(c.out, "version %d %s: %s\n", res.GetPolicy().GetVersion(), verb, rules)
			return err
		}),
	}
	cmd.Flags().Int64Var(&expected, "expected-version", 0, "only if this `version` is still in force")
	cmd.Flags().BoolVar(&dry, "check", false, "only check it")
	cmd.Flags().BoolVar(&force, "force", false, "also when it removes everything; it is applied without approval")
	return cmd
}
