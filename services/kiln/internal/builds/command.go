// Package builds is `kiln builds`: what builds there are, what happens in them,
// and what to do with them.
package builds

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/proto/client"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

// Command is `kiln builds`.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "builds",
		Short: "List, watch, cancel and retry builds, and fetch their artifacts",
		Long: `Shows the builds of a builder and acts on them: those that were started by RPC or
with kiln build --detach, and those of kiln build, buildctl and docker buildx.

A build's ID may be shortened to a beginning that no other of the last 1000
builds has.`,
		Args: cobra.NoArgs,
	}
	conn := &connect.Flags{}
	conn.Add(cmd.PersistentFlags())
	for _, sub := range []func(*connect.Flags) *cobra.Command{
		lsCommand, showCommand, watchCommand, logsCommand, cancelCommand, retryCommand, artifactsCommand,
	} {
		cmd.AddCommand(sub(conn))
	}
	return cmd
}

// call is one run of a command: the builder, and where to write.
type call struct {
	*client.Client
	conn   *connect.Flags
	out    io.Writer
	errOut io.Writer
	term   table.Terminal // of out
	now    time.Time
}

// runE makes what cobra runs: with a client, and with errors that a person can
// read.
func runE(conn *connect.Flags, run func(ctx context.Context, c *call, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		cmd.SilenceUsage = true
		api, err := conn.Dial()
		if err != nil {
			return err
		}
		defer func() { _ = api.Close() }() // nothing is left to lose
		c := &call{Client: api, conn: conn, out: cmd.OutOrStdout(), errOut: cmd.ErrOrStderr(), term: table.TerminalOf(cmd.OutOrStdout()), now: time.Now()}
		return conn.Explain(run(cmd.Context(), c, args))
	}
}

// oneID says how a command with one ID is called.
func oneID(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%s needs the ID of one build, and got %d arguments; `kiln builds ls` shows the IDs", cmd.Name(), len(args))
	}
	return nil
}
