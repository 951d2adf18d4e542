package janitor

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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
	flags       string          // how the janitor was reached, for commands that are shown
	told        map[string]bool // lines that were written to errOut
}

// reached are the flags that a command was given to reach the janitor, each after a space, so that a
// command which is shown reaches it, too.
func reached(cmd *cobra.Command) (text string) {
	cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			text += fmt.Sprintf(" --%s=%s", f.Name, shellWord(f.Value.String()))
		}
	})
	return text
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:=@%+,-]+$`)

// shellWord is a text as a shell reads it back.
func shellWord(text string) string {
	if plainWord.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// once writes a line to errOut that was not written there before.
func (c *call) once(line string) {
	if c.told[line] {
		return
	}
	c.told[line] = true
	_, _ = fmt.Fprintln(c.errOut, line) // for people
}

// runE makes what cobra runs: with a client, and with errors that a person can read.
func runE(conn *connect.Flags, do func(ctx context.Context, c *call, args []string) error) func(*cobra.Command, []string) error {
	return conn.RunE(func(cmd *cobra.Command, cc *grpc.ClientConn, args []string) error {
		out := cmd.OutOrStdout()
		return do(cmd.Context(), &call{
			api: janitorv1.NewJanitorServiceClient(cc), in: cmd.InOrStdin(), out: out, errOut: cmd.ErrOrStderr(),
			term: table.TerminalOf(out), now: time.Now(), flags: reached(cmd), told: map[string]bool{},
		}, args)
	})
}
