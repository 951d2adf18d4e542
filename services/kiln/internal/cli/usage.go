package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// group marks commands that only hold other commands.
const group = "group"

// explainUsage makes wrong flags, arguments and subcommands errors that name the help.
func explainUsage(root *cobra.Command) {
	// A group has a RunE, and still no usage without a subcommand.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}",
		`{{if and .Runnable (not (index .Annotations "`+group+`"))}}`, 1))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	explainArgs(root)
}

func explainArgs(cmd *cobra.Command) {
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args, cmd.RunE = cobra.ArbitraryArgs, refuseSubcommand
		if cmd.Annotations == nil {
			cmd.Annotations = map[string]string{}
		}
		cmd.Annotations[group] = "true"
	} else if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error { return explainCount(cmd, args, check(cmd, args)) }
	}
	for _, sub := range cmd.Commands() {
		explainArgs(sub)
	}
}

// refuseSubcommand is the RunE of a group: it prints the help, or names the command that does not exist.
func refuseSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	cmd.SuggestionsMinimumDistance = 2
	meant := ""
	if all := cmd.SuggestionsFor(args[0]); len(all) > 0 {
		meant = "; did you mean " + strings.Join(all, " or ") + "?"
	}
	return fmt.Errorf("unknown command %q for %q%s; see %[2]s --help", args[0], cmd.CommandPath(), meant)
}

// explainCount replaces cobra's errors about the number of arguments. Errors of a command's own check stay.
func explainCount(cmd *cobra.Command, args []string, err error) error {
	switch {
	case err == nil:
		return nil
	case strings.HasPrefix(err.Error(), "unknown command "):
		return fmt.Errorf("%s takes no argument, and was given %q; see %[1]s --help", cmd.CommandPath(), args[0])
	case strings.Contains(err.Error(), " arg(s), "):
		return fmt.Errorf("wrong number of arguments: %d; the usage is `%s`; see %s --help", len(args), cmd.UseLine(), cmd.CommandPath())
	default:
		return err
	}
}
