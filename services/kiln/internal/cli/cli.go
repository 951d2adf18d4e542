// Package cli puts the kiln command together from its subcommands.
package cli

import (
	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/services/kiln/internal/build"
	"github.com/kilnbuild/kiln/services/kiln/internal/builds"
	"github.com/kilnbuild/kiln/services/kiln/internal/caches"
	"github.com/kilnbuild/kiln/services/kiln/internal/certs"
	"github.com/kilnbuild/kiln/services/kiln/internal/debug"
	"github.com/kilnbuild/kiln/services/kiln/internal/janitor"
	"github.com/kilnbuild/kiln/services/kiln/internal/profile"
	"github.com/kilnbuild/kiln/services/kiln/internal/stepnet"
	"github.com/kilnbuild/kiln/services/kiln/internal/token"
	"github.com/kilnbuild/kiln/services/kiln/internal/up"
)

// New returns the kiln command.
func New() *cobra.Command {
	root := &cobra.Command{
		Use:   "kiln",
		Short: "Builds images with BuildKit, and keeps its caches and the registry in order",
		Long: `Kiln is a build system over BuildKit.

"kiln up" runs all of it on this machine: a registry, buildkitd and the three
services. The other commands are clients of a builder, wherever it runs. They
find it, its registry and their credentials by a profile, which "kiln up" writes:
see "kiln profile".`,
		Version:       service.Version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	for _, subcommand := range []func() *cobra.Command{
		build.Command,
		build.RegistryCommand,
		builds.Command,
		caches.Command,
		caches.CleanCommand,
		janitor.Command,
		certs.Command,
		token.Command,
		profile.Command,
		debug.Command,
		debug.WorkersCommand,
		up.Command,
		up.DownCommand,
		stepnet.Command,
	} {
		root.AddCommand(subcommand())
	}
	explainUsage(root)
	return root
}
