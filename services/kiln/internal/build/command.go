// Package build is `kiln build` and `kiln build-registry`: a thin BuildKit client
// over the builder's gateway. It sends only what changed of the context since the
// last build, and secrets never leave its session. With --detach it is a client of
// the Build API instead, and sends both.
package build

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/progress"
)

// options are what the flags and arguments ask for.
type options struct {
	conn            connect.Flags
	contextDir      string
	dockerfileDir   string
	dockerfileName  string
	tag             string
	project         string
	target          string
	platforms       []string
	buildArgs       []string
	labels          []string
	secrets         []string
	ssh             []string
	noCache         bool
	pull            bool
	push            bool
	load            bool
	detach          bool
	progress        string
	format          string
	registryCache   bool
	cacheRepository string
	cacheScope      string
	cacheDir        string
	cacheManager    string
}

// Command is `kiln build`.
func Command() *cobra.Command {
	return command(false, &cobra.Command{
		Use:   "build CONTEXT_DIR DOCKERFILE_DIR TAG",
		Short: "Build an image, with the daemon's own cache",
		Long: `Builds the image TAG from the files of CONTEXT_DIR and the Dockerfile in
DOCKERFILE_DIR (or at that path, when it is a file). Without --push or --load the
result stays in the build cache.

With --detach the context is uploaded, and the build goes on by itself: its ID is
printed, for kiln builds. Registry credentials are then the daemon's, not yours.`,
		Example: `  kiln build . . localhost:5000/web:1 --push
  kiln build . docker/web web:dev --load --build-arg VERSION=1.2
  kiln build . . localhost:5000/web:1 --push --platform linux/amd64,linux/arm64
  kiln build . . web:dev --cache-dir /var/cache/buildkit-cache
  kiln build . . web:dev --secret id=npmrc,src=$HOME/.npmrc
  kiln build . . localhost:5000/web:1 --push --progress quiet --format json
  kiln builds watch $(kiln build . . localhost:5000/web:1 --push --detach)
  kiln build . . registry.example.org/web:1 --push --builder build.example.org:50051 \
    --tls-ca ca.pem --tls-cert me.pem --tls-key me-key.pem`,
	})
}

// RegistryCommand is `kiln build-registry`.
func RegistryCommand() *cobra.Command {
	return command(true, &cobra.Command{
		Use:   "build-registry CONTEXT_DIR DOCKERFILE_DIR TAG",
		Short: "Build an image, with a cache in the registry that all daemons share",
		Long: `As kiln build, and besides the daemon's own cache it reads steps from the
registry, at CACHE_REPOSITORY/PROJECT, and writes all steps there afterwards, so
that a daemon that has nothing builds as fast as one that has it all.`,
		Example: `  kiln build-registry . . localhost:5000/web:1 --push
  kiln build-registry . . localhost:5000/web:1 --cache-scope main`,
	})
}

func command(registryCache bool, cmd *cobra.Command) *cobra.Command {
	o := &options{registryCache: registryCache}
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) != 3 {
			return fmt.Errorf("%s needs CONTEXT_DIR, DOCKERFILE_DIR and TAG, and got %d arguments; for example: kiln %s . . web:dev",
				cmd.Name(), len(args), cmd.Name())
		}
		return nil
	}
	o.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.complete(args); err != nil {
			return err
		}
		cmd.SilenceUsage = true
		if err := o.findServices(); err != nil {
			return err
		}
		return run(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

func (o *options) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	o.conn.Add(flags)
	flags.StringVar(&o.project, "project", os.Getenv("KILN_PROJECT"), "project of the build (or KILN_PROJECT; default: the last part of TAG's repository)")
	flags.StringVar(&o.target, "target", "", "stage to build (default: the last one)")
	flags.StringSliceVar(&o.platforms, "platform", nil, "platforms to build for, like linux/amd64,linux/arm64 (default: the daemon's own)")
	flags.StringArrayVar(&o.buildArgs, "build-arg", nil, "value of an ARG, NAME=VALUE, or NAME for its value in the environment (repeatable)")
	flags.StringArrayVar(&o.labels, "label", nil, "label of the image, NAME=VALUE (repeatable)")
	flags.StringArrayVar(&o.secrets, "secret", nil, "secret, id=ID,src=FILE or id=ID,env=VARIABLE (repeatable)")
	flags.StringArrayVar(&o.ssh, "ssh", nil, "SSH agent or keys, default or ID=SOCKET|KEY[,KEY] (repeatable)")
	flags.BoolVar(&o.noCache, "no-cache", false, "run every step again")
	flags.BoolVar(&o.pull, "pull", false, "ask the registry for base images again")
	flags.BoolVar(&o.push, "push", false, "push the image to TAG's registry")
	flags.BoolVar(&o.load, "load", false, "load the image into the local Docker Engine")
	flags.StringVar(&o.cacheDir, "cache-dir", os.Getenv("KILN_CACHE_DIR"),
		"`directory` of this host to read steps from before and to write all steps to afterwards, under the project's name (or KILN_CACHE_DIR)")
	connect.AddAddress(flags, connect.CacheManager, &o.cacheManager)
	flags.BoolVar(&o.detach, "detach", false, "start the build, print its ID, and do not wait for it")
	flags.StringVar(&o.progress, "progress", "auto", "progress on standard error: "+strings.Join(progress.Modes, ", "))
	flags.StringVar(&o.format, "format", "text", "outcome on standard output: text or json")
	if o.registryCache {
		flags.StringVar(&o.cacheRepository, "cache-repository", os.Getenv("KILN_CACHE_REPOSITORY"),
			"repository below which the project's cache lives (or KILN_CACHE_REPOSITORY; default: cache in the profile's registry)")
		flags.StringVar(&o.cacheScope, "cache-scope", "latest", "tag of the project's cache, for example a branch")
	}
	for name, values := range map[string][]string{"progress": progress.Modes, "format": {"text", "json"}} {
		// An error is that the flag does not exist, which the first run of a test shows.
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
}

// oneOf says which values a flag takes when it has another.
func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("--%s is %q; use %s", flag, value, strings.Join(allowed, ", "))
}
