// Package build is `kiln build` and `kiln build-registry`: a thin BuildKit client
// over the builder's gateway, with the flags of `docker buildx build`. It sends only
// what changed of the context since the last build, and secrets never leave its
// session. With --detach it is a client of the Build API instead, and sends both.
package build

import (
	"fmt"
	"io"

	"github.com/moby/buildkit/client"
	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
)

// options are what the flags and arguments ask for.
type options struct {
	conn connect.Flags

	// Where the context and the Dockerfile are: of contextDir, contextURL and
	// contextTar one is set.
	file           string
	contextDir     string
	contextURL     string
	contextTar     io.Reader
	dockerfileDir  string // Empty: the Dockerfile is in the remote context.
	dockerfileName string
	ownDockerfile  bool // The Dockerfile is not that of a remote or a given context.
	contextFlags   []string
	contexts       []namedContext
	scratch        []string // directories to remove at the end
	dockerForm     bool     // kiln build CONTEXT, as docker buildx build

	tagFlags      []string
	tags          []string // normalized
	project       string
	target        string
	platformFlags []string
	platforms     []string
	buildArgs     []string
	labels        []string
	secrets       []string
	ssh           []string
	noCache       bool
	noCacheFilter []string
	pull          bool
	steps         stepFlags

	outputFlags     []string
	outputs         []client.ExportEntry
	push            bool
	load            bool
	annotationFlags []string
	annotations     map[string]string
	attestFlags     []string
	provenance      string
	sbom            string
	attests         map[string]string
	metadataFile    string
	iidFile         string
	stdoutTaken     bool // by an output

	callFlag string
	check    bool
	call     *call
	policies []string
	detach   bool
	quiet    bool
	progress string
	format   string

	registryCache   bool
	cacheRepository string
	cacheScope      string
	cacheFromScopes []string
	cacheFromFlags  []string
	cacheToFlags    []string
	cacheFrom       []client.CacheOptionsEntry
	cacheTo         []client.CacheOptionsEntry
	cacheDir        string
	cacheManager    string
}

// Command is `kiln build`.
func Command() *cobra.Command {
	return command(false, &cobra.Command{
		Use:   "build CONTEXT | CONTEXT_DIR DOCKERFILE_DIR TAG",
		Short: "Build an image, with the daemon's own cache",
		Long: `Builds an image, in one of two forms:

  kiln build [-t TAG] [-f FILE] CONTEXT           as docker buildx build
  kiln build CONTEXT_DIR DOCKERFILE_DIR TAG       the Dockerfile in its own directory

CONTEXT is a directory, a git repository, a URL, or - for a tar or a Dockerfile on standard
input. FILE is a path, relative to the working directory, or - for standard input; the default
is CONTEXT/Dockerfile. DOCKERFILE_DIR may also be the path of a Dockerfile. Without --output,
--push or --load the result stays in the build cache.

The flags of docker buildx build mean the same here. In its form, images get the small
provenance attestation that docker buildx gives them; --provenance=false or
BUILDX_NO_DEFAULT_ATTESTATIONS=1 leaves it out. These variables are read as docker buildx reads
them: DOCKER_CONFIG, DOCKER_DEFAULT_PLATFORM, SOURCE_DATE_EPOCH, BUILDKIT_PROGRESS,
BUILDX_NO_DEFAULT_ATTESTATIONS, BUILDX_METADATA_PROVENANCE, BUILDX_METADATA_WARNINGS and
EXPERIMENTAL_BUILDKIT_SOURCE_POLICY.

With --detach the context is uploaded, and the build goes on by itself: its ID is
printed, for kiln builds. Registry credentials are then the daemon's, not yours.

Ends with 0 after success, 130 when it was cancelled, with the frontend's status after --call
and --check, and with 1 after other failures.`,
		Example: `  kiln build -t localhost:5000/web:1 --push .
  kiln build -t web:dev -f docker/web.Dockerfile --load --build-arg VERSION=1.2 .
  kiln build . docker/web web:dev --load --build-arg VERSION=1.2
  kiln build -t localhost:5000/web:1 --push --platform linux/amd64,linux/arm64 .
  kiln build -o out .
  kiln build -o - . | tar -t
  kiln build -t web:1 --output type=oci,dest=web.tar --metadata-file web.json .
  kiln build --check .
  kiln build -t localhost:5000/web:1 --push https://github.com/example/web.git#main
  tar -cz . | kiln build -t localhost:5000/web:1 --push -
  kiln build --build-context assets=../assets --cache-from localhost:5000/cache/web .
  kiln build . . web:dev --cache-dir /var/cache/buildkit-cache
  kiln build . . web:dev --secret id=npmrc,src=$HOME/.npmrc
  kiln build . . localhost:5000/web:1 --push --progress none --format json
  kiln builds watch $(kiln build . . localhost:5000/web:1 --push --detach)
  kiln build . . registry.example.org/web:1 --push --builder build.example.org:50051 \
    --tls-ca ca.pem --tls-cert me.pem --tls-key me-key.pem`,
	})
}

// RegistryCommand is `kiln build-registry`.
func RegistryCommand() *cobra.Command {
	return command(true, &cobra.Command{
		Use:   "build-registry CONTEXT | CONTEXT_DIR DOCKERFILE_DIR TAG",
		Short: "Build an image, with a cache in the registry that all daemons share",
		Long: `As kiln build, and besides the daemon's own cache it reads steps from the
registry, at CACHE_REPOSITORY/PROJECT, and writes all steps there afterwards, so
that a daemon that has nothing builds as fast as one that has it all.

The cache has a scope for each combination of platforms and target, so that builds for other
platforms and targets do not replace it; the project's default scope is read as well.
--cache-scope names the scope instead, for example a branch, and --cache-from-scope names more
scopes to read, for example that of the main branch.`,
		Example: `  kiln build-registry . . localhost:5000/web:1 --push
  kiln build-registry -t localhost:5000/web:1 --push .
  kiln build-registry . . localhost:5000/web:1 --cache-scope feature --cache-from-scope main`,
	})
}

func command(registryCache bool, cmd *cobra.Command) *cobra.Command {
	o := &options{registryCache: registryCache}
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) != 1 && len(args) != 3 {
			return fmt.Errorf("%[1]s needs a CONTEXT, or CONTEXT_DIR, DOCKERFILE_DIR and TAG, and got %[2]d arguments; for example: kiln %[1]s -t web:dev . or kiln %[1]s . . web:dev",
				cmd.Name(), len(args))
		}
		return nil
	}
	o.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		defer o.cleanUp()
		if err := o.complete(args, cmd.InOrStdin()); err != nil {
			return err
		}
		if err := o.checkDetached(cmd.Flags()); err != nil {
			return err
		}
		cmd.SilenceUsage = true
		if err := o.findServices(); err != nil {
			return err
		}
		o.warnIgnored(cmd.Flags(), cmd.ErrOrStderr())
		return run(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}
