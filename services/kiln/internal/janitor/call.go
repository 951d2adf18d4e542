package janitor

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

// call is one use of a command: the janitor, and where to write.
type call struct {
	api         janitorv1.JanitorServiceClient
	in          io.Reader
	out, errOut io.Writer
	term        table.Terminal
	now         time.Time
}

// runE makes what cobra runs: with a client, and with errors that a person can read.
func runE(conn *connect.Flags, do func(ctx context.Context, c *call, args []string) error) func(*cobra.Command, []string) error {
	return conn.RunE(func(cmd *cobra.Command, cc *grpc.ClientConn, args []string) error {
		out := cmd.OutOrStdout()
		return do(cmd.Context(), &call{janitorv1.NewJanitorServiceClient(cc), cmd.InOrStdin(), out, cmd.ErrOrStderr(), table.TerminalOf(out), time.Now()}, args)
	})
}
