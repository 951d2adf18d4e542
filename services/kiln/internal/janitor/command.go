// Package janitor is `kiln janitor`: what the registry holds, whether it is well, and what
// the policy would remove from it.
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
		Short: "See whether the registry is well, what it holds, and what the policy would remove",
		Long: `Shows what a janitor knows of the registry that it keeps. Unless it was told another one, its
policy is: in cache/** what was not used for 7 days goes, and elsewhere what has no tag.
This version plans, and removes nothing yet.`,
		Args: cobra.NoArgs,
	}
	conn := &connect.Flags{To: connect.Janitor}
	conn.Add(cmd.PersistentFlags())
	for _, sub := range []func(*connect.Flags) *cobra.Command{planCommand, usageCommand, checkCommand} {
		cmd.AddCommand(sub(conn))
	}
	return cmd
}

// word is the name of a value of an enum as people write it: "cache".
func word(value interface{ String() string }, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(value.String(), prefix))
}
