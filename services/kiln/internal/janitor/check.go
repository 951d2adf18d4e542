package janitor

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/fault"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

func checkCommand(conn *connect.Flags) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check that the registry is well",
		Long: `Checks the registry: that it answers, and how fast; that manifests can be deleted; its disk.
Ends with 1 when a check fails. With --format json it is the
kiln.janitor.v1.CheckRegistryResponse.`,
		Example: `  kiln janitor check`,
		Args:    cobra.NoArgs,
		RunE: conn.RunE(func(cmd *cobra.Command, cc *grpc.ClientConn, _ []string) error {
			res, err := janitorv1.NewJanitorServiceClient(cc).CheckRegistry(cmd.Context(), &janitorv1.CheckRegistryRequest{})
			if err != nil {
				return err
			}
			if format == "json" {
				err = show.JSON(cmd.OutOrStdout(), res)
			} else {
				err = writeChecks(cmd, res)
			}
			if err == nil && res.GetState() == janitorv1.CheckState_CHECK_STATE_FAIL {
				return fault.New(fault.FailedPrecondition, "", "the registry "+res.GetRegistry()+" is not well", "do as the checks that fail say")
			}
			return err
		}),
	}
	show.AddFormat(cmd, &format, "text or json")
	return cmd
}

func writeChecks(cmd *cobra.Command, res *janitorv1.CheckRegistryResponse) error {
	styles := map[janitorv1.CheckState]table.Style{
		janitorv1.CheckState_CHECK_STATE_OK: table.Green, janitorv1.CheckState_CHECK_STATE_WARN: table.Yellow, janitorv1.CheckState_CHECK_STATE_FAIL: table.Red,
	}
	out := cmd.OutOrStdout()
	t := table.Table{Header: []string{"CHECK", "STATE", "TOOK", "WHAT", "REMEDY"}, GiveWay: 2}
	for _, c := range res.GetChecks() {
		t.Add(table.Cell{Text: c.GetName(), Style: table.Bold}, table.Cell{Text: word(c.GetState(), "CHECK_STATE_"), Style: styles[c.GetState()]},
			table.Cell{Text: fmt.Sprint(c.GetDuration().AsDuration().Round(time.Millisecond))}, table.Cell{Text: c.GetMessage()}, table.Cell{Text: c.GetRemedy()})
	}
	return t.Write(out, table.TerminalOf(out))
}
