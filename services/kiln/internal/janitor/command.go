// Package janitor is `kiln janitor`: what the registry holds, whether it is well, and what
// of it the policy removes.
package janitor

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
)

// Command is `kiln janitor`.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "janitor",
		Short: "Keep the registry to a policy: see what would go and why, run, and bring back",
		Long: `Shows what a janitor knows of the registry that it keeps, and has it remove what its policy
says. Unless it was told another one, that is: in cache/** what was not used for 7 days goes,
and elsewhere what has no tag. The janitor also runs by itself, on a schedule.`,
		Args: cobra.NoArgs,
	}
	conn := &connect.Flags{To: connect.Janitor}
	conn.Add(cmd.PersistentFlags())
	for _, sub := range []func(*connect.Flags) *cobra.Command{planCommand, runCommand, runsCommand, usageCommand, checkCommand, verifyCommand, quarantineCommand, restoreCommand, purgeCommand, policyCommand} {
		cmd.AddCommand(sub(conn))
	}
	return cmd
}

// word is the name of a value of an enum as people write it: "cache".
func word(value interface{ String() string }, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(value.String(), prefix))
}
