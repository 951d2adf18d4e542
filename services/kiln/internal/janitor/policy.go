package janitor

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/config"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/policyfile"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
)

func policyCommand(conn *connect.Flags) *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Show the policy, or replace it", Args: cobra.NoArgs}
	cmd.AddCommand(policyGetCommand(conn), policySetCommand(conn))
	return cmd
}

func policyGetCommand(conn *connect.Flags) *cobra.Command {
	var version int64
	var format string
	cmd := &cobra.Command{
		Use:   "get",
		Short: "Show the policy in force, as YAML that policy set takes",
		Example: `  kiln janitor policy get
  kiln janitor policy get >policy.yaml && $EDITOR policy.yaml && kiln janitor policy set policy.yaml`,
		Args: cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error {
			res, err := c.api.GetPolicy(ctx, &janitorv1.GetPolicyRequest{Version: version})
			if err != nil {
				return err
			}
			if format == "json" {
				return show.JSON(c.out, res.GetPolicy())
			}
			return config.Print(c.out, res.GetPolicy())
		}),
	}
	cmd.Flags().Int64Var(&version, "version", 0, "an earlier `version`; 0: the one in force")
	show.AddFormat(cmd, &format, "text (YAML) or json")
	return cmd
}

func policySetCommand(conn *connect.Flags) *cobra.Command {
	req := &janitorv1.UpdatePolicyRequest{}
	cmd := &cobra.Command{
		Use:   "set FILE",
		Short: "Replace the policy by that of a file",
		Long: `Replaces the policy in force by that of a file, YAML with the fields of
kiln.janitor.v1.Policy; - is standard input. What is wrong is named with its line and
column, and nothing changes. The old versions are kept: policy get --version. Look at
kiln janitor plan --policy FILE before.`,
		Example: `  kiln janitor policy set policy.yaml
  kiln janitor policy set policy.yaml --check
  printf 'rules:\n- {name: caches, match: {repositories: ["cache/**"]}, keep: {age: 72h}}\n' | kiln janitor policy set -`,
		Args: cobra.ExactArgs(1),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			text, err := policyfile.Text(c.in, args[0])
			if err != nil {
				return err
			}
			req.Source = &janitorv1.UpdatePolicyRequest_Text{Text: text}
			res, err := c.api.UpdatePolicy(ctx, req)
			if err != nil {
				return err
			}
			verb := "in force"
			if req.GetValidateOnly() {
				verb = "would be in force"
			}
			_, err = fmt.Fprintf(c.out, "version %d %s: %d rules\n", res.GetPolicy().GetVersion(), verb, len(res.GetPolicy().GetRules()))
			return err
		}),
	}
	cmd.Flags().Int64Var(&req.ExpectedVersion, "expected-version", 0, "only if this `version` is still in force")
	cmd.Flags().BoolVar(&req.ValidateOnly, "check", false, "only check it")
	cmd.Flags().BoolVar(&req.Force, "force", false, "also when it is empty or removes everything")
	return cmd
}
