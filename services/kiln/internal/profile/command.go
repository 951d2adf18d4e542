package profile

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

// Command is `kiln profile`.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "See and choose where builder, cache manager, janitor and registry are",
		Long: `A profile names the builder, the cache manager, the janitor, the registry and the
credentials of one installation. Each command that calls a service looks, in this order, at
its flags (--builder, --token-file, …), the variables (KILN_BUILDER, KILN_TOKEN_FILE, …), and
the profile. The profile is the first of:

  1. the one that --profile, else KILN_PROFILE names, by name or by path
  2. the one that "kiln profile use" has chosen
  3. that of the running kiln up of this user
  4. /etc/kiln/profile.yaml
  5. "default": 127.0.0.1:50051 to 50053, and the registry localhost:5000

Names are looked up in ~/.config/kiln/profiles, /run/kiln/profiles (where kiln up writes) and
/etc/kiln/profiles. The credentials of a profile are sent to its own addresses only.

A profile is YAML; all fields may be left out, and paths are relative to the file:

  builder:        # also cache_manager and janitor
    address: build.example.org:50051
    ca_file: ca.crt
    cert_file: me.crt
    key_file: me.key
    server_name: builder.example.org
    token_file: me.token
    insecure: false
    http_address: build.example.org:9461
  registry:
    address: registry.example.org
    ca_file: ca.crt
  daemon:         # for kiln debug
    address: unix:///run/buildkit/buildkitd.sock
    config_file: /etc/buildkit/buildkitd.toml
    root: /var/lib/buildkit
  data_dir: /var/lib/kiln
  cache_dir: /var/cache/buildkit-cache
  certs_dir: /etc/kiln/certs`,
		Example: `  kiln profile ls
  kiln profile show
  kiln profile use work
  kiln profile use --none
  kiln builds ls --profile work`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(lsCommand(), showCommand(), useCommand())
	return cmd
}

func lsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "List the profiles",
		Long:    `Lists the profiles that this user can read. * marks the one that commands use.`,
		Example: `  kiln profile ls`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			return list(cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
}

// list writes the profiles. That none is in use is a note on errOut.
func list(out, errOut io.Writer) error {
	inUse, err := Select("")
	all := append(List(), Defaults())
	t := table.Table{Header: []string{"", "NAME", "STATE", "BUILDER", "REGISTRY", "FILE"}, GiveWay: 5}
	for _, p := range all {
		mark, state := "", ""
		if err == nil && p.Name == inUse.Name && p.Path == inUse.Path {
			mark = "*"
		}
		switch {
		case p.IsRunning():
			state = fmt.Sprintf("running (pid %d)", p.Process.PID)
		case p.Process != nil:
			state = "ended"
		}
		t.Add(table.Cell{Text: mark}, table.Cell{Text: p.Name, Style: table.Bold}, table.Cell{Text: state},
			table.Cell{Text: p.Builder.Address}, table.Cell{Text: p.Registry.Address}, table.Cell{Text: p.Path})
	}
	if writeErr := t.Write(out, table.TerminalOf(out)); writeErr != nil {
		return writeErr
	}
	if err != nil {
		_, _ = fmt.Fprintf(errOut, "note: no profile is in use: %s\n", fault.Line(err))
	}
	return nil
}

func showCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show a profile",
		Long:  `Shows the profile that commands use or, with NAME, that one. Secrets stay in the files that it names.`,
		Example: `  kiln profile show
  kiln profile show local`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cmd.SilenceUsage = true
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			p, err := Select(name)
			if err != nil {
				return err
			}
			text, err := yaml.Marshal(p)
			if err != nil {
				return err
			}
			from := p.Path
			if from == "" {
				from = "built in"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "# %s (%s)\n%s", p.Name, from, text)
			return err
		},
		ValidArgsFunction: completeNames,
	}
}

func useCommand() *cobra.Command {
	none := false
	cmd := &cobra.Command{
		Use:   "use NAME",
		Short: "Choose the profile that commands use",
		Long: `Makes a profile the one that this user's commands use, in place of the running kiln up.
--none takes the choice back. --profile and KILN_PROFILE go before it.`,
		Example: `  kiln profile use work
  kiln profile use --none`,
		Args: func(_ *cobra.Command, args []string) error {
			if (len(args) == 1) == none || len(args) > 1 {
				return fmt.Errorf("use needs the NAME of one profile, or --none; `kiln profile ls` shows the names")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cmd.SilenceUsage = true
			name := ""
			if !none {
				name = args[0]
			}
			if err := Choose(name); err != nil {
				return err
			}
			p, err := Select("")
			if err != nil {
				return err
			}
			if env := os.Getenv("KILN_PROFILE"); env != "" {
				_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "note: KILN_PROFILE is set to %q and goes before this choice\n", env)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "commands use the profile %s, with the builder at %s\n", p.Name, p.Builder.Address)
			return err
		},
		ValidArgsFunction: completeNames,
	}
	cmd.Flags().BoolVar(&none, "none", false, "take the choice back")
	return cmd
}

func completeNames(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return append(namesOf(List()), Defaults().Name), cobra.ShellCompDirectiveNoFileComp
}
