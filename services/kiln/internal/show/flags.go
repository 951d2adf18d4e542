package show

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// formats are the values of --format.
var formats = []string{"text", "json"}

// AddFormat adds --format to a command.
func AddFormat(cmd *cobra.Command, format *string, help string) {
	cmd.Flags().StringVar(format, "format", "text", help)
	Choice(cmd, "format", formats)
}

// Choice makes a flag of a command take one of some values, or several of them,
// and the shell complete them.
func Choice(cmd *cobra.Command, name string, allowed []string) {
	// An error is that the flag does not exist, which the first run of a test shows.
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp))
	earlier := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if earlier != nil {
			if err := earlier(cmd, args); err != nil {
				return err
			}
		}
		values := []string{cmd.Flag(name).Value.String()}
		if list, ok := cmd.Flag(name).Value.(interface{ GetSlice() []string }); ok {
			values = list.GetSlice()
		}
		for _, value := range values {
			if !slices.Contains(allowed, strings.ToLower(value)) {
				return fault.New(fault.InvalidArgument, "", fmt.Sprintf("--%s is %q", name, value), "use "+strings.Join(allowed, ", "))
			}
		}
		return nil
	}
}
