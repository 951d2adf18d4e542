package build

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
)

func (o *options) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	o.conn.Add(flags)
	o.addInputFlags(flags)
	o.addStepFlags(flags)
	o.addOutputFlags(flags)
	o.addCacheFlags(flags)
	addIgnoredFlags(flags)
	for name, values := range map[string][]string{
		"progress": progressModes, "format": {"text", "json"}, "network": {"default", "none", "host"}, "call": {"build", "check", "outline", "targets"},
	} {
		// An error is that the flag does not exist, which the first run of a test shows.
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
}

func (o *options) addInputFlags(flags *pflag.FlagSet) {
	flags.StringArrayVarP(&o.tagFlags, "tag", "t", nil, "`name` of the image, [REGISTRY/]NAME[:TAG] (repeatable)")
	flags.StringVarP(&o.file, "file", "f", "", "`path` of the Dockerfile, or - for standard input (default: CONTEXT/Dockerfile)")
	flags.StringArrayVar(&o.contextFlags, "build-context", nil,
		"further context, `NAME=VALUE`: a directory, a URL, docker-image://IMAGE or oci-layout://DIRECTORY (repeatable)")
	connect.FromEnv(flags, &o.project, "project", "KILN_PROJECT",
		"project of the build (or KILN_PROJECT; default: the last part of the first tag's repository, else of the context's name)")
	flags.StringVar(&o.target, "target", "", "stage to build (default: the last one)")
	flags.StringArrayVar(&o.platformFlags, "platform", nil,
		"platforms to build for, like linux/amd64,linux/arm64, or local (or DOCKER_DEFAULT_PLATFORM; default: the daemon's own)")
	flags.StringArrayVar(&o.buildArgs, "build-arg", nil, "value of an ARG, NAME=VALUE, or NAME for its value in the environment (repeatable)")
	flags.StringArrayVar(&o.labels, "label", nil, "label of the image, NAME=VALUE (repeatable)")
	flags.StringArrayVar(&o.secrets, "secret", nil, "secret, id=ID,src=FILE or id=ID,env=VARIABLE (repeatable)")
	flags.StringArrayVar(&o.ssh, "ssh", nil, "SSH agent or keys, default or ID=SOCKET|KEY[,KEY] (repeatable)")
	flags.BoolVar(&o.noCache, "no-cache", false, "run every step again")
	flags.StringArrayVar(&o.noCacheFilter, "no-cache-filter", nil, "`stage` whose steps run again (repeatable)")
	flags.BoolVar(&o.pull, "pull", false, "ask the registry for base images again")
	flags.StringVar(&o.callFlag, "call", "build", "ask the frontend in place of building: check, outline or targets; [,format=json][,ignorestatus=true]")
	flags.BoolVar(&o.check, "check", false, "the same as --call check: lint the Dockerfile")
	flags.StringVar(&o.callFlag, "print", "build", "the same as --call")
	_ = flags.MarkHidden("print")
	flags.StringArrayVar(&o.policies, "policy", nil, "policy of docker buildx; refused, except disabled=true: the builder has its own")
}

func (o *options) addStepFlags(flags *pflag.FlagSet) {
	s := &o.steps
	flags.StringSliceVar(&s.addHosts, "add-host", nil, "entry of /etc/hosts in RUN steps, `HOST:IP` (repeatable)")
	flags.StringArrayVar(&s.allow, "allow", nil, "`right` that the build needs: network.host, security.insecure, device; or "+localDelete+" (repeatable)")
	flags.StringVar(&s.network, "network", "default", "network of RUN steps: default, none or host")
	flags.StringVar(&s.shmSize, "shm-size", "", "`size` of /dev/shm in RUN steps, like 64m")
	flags.StringArrayVar(&s.ulimits, "ulimit", nil, "limit of RUN steps, `NAME=SOFT[:HARD]` (repeatable)")
	flags.StringArrayVar(&s.resources, "resource", nil, "resource of RUN steps, like memory=2g or cpu-quota=50000 (repeatable)")
	flags.StringVar(&s.cgroupParent, "cgroup-parent", "", "parent cgroup of RUN steps")
	for name, short := range map[string]string{
		"memory": "m", "memory-swap": "", "cpu-shares": "c", "cpu-period": "", "cpu-quota": "", "cpuset-cpus": "", "cpuset-mems": "",
	} {
		flags.VarP(&resourceFlag{name, &s.resources}, name, short, "the same as --resource "+name+"=VALUE")
		_ = flags.MarkHidden(name)
	}
}

// resourceFlag is a flag of docker build that is one of --resource here.
type resourceFlag struct {
	name string
	all  *[]string
}

func (*resourceFlag) String() string { return "" }
func (*resourceFlag) Type() string   { return "string" }
func (f *resourceFlag) Set(value string) error {
	*f.all = append(*f.all, f.name+"="+value)
	return nil
}

func (o *options) addOutputFlags(flags *pflag.FlagSet) {
	flags.StringArrayVarP(&o.outputFlags, "output", "o", nil,
		"where the result goes: DIRECTORY, - for a tar on standard output, or type=TYPE[,dest=PATH] with local, tar, oci, docker, image or registry (repeatable)")
	flags.BoolVar(&o.push, "push", false, "push the image to the registries of its tags")
	flags.BoolVar(&o.load, "load", false, "load the image into the local Docker Engine")
	flags.StringArrayVar(&o.annotationFlags, "annotation", nil, "annotation of the image, `[KIND:]KEY=VALUE` (repeatable)")
	flags.StringArrayVar(&o.attestFlags, "attest", nil, "attestation of the image, like type=sbom or type=provenance,mode=max (repeatable)")
	flags.StringVar(&o.provenance, "provenance", "", "the same as --attest type=provenance,…: true, false or mode=max")
	flags.StringVar(&o.sbom, "sbom", "", "the same as --attest type=sbom,…: true, false or generator=IMAGE")
	flags.StringVar(&o.metadataFile, "metadata-file", "", "`file` for what the build came to, as JSON")
	flags.StringVar(&o.iidFile, "iidfile", "", "`file` for the image's ID")
	flags.BoolVar(&o.detach, "detach", false, "start the build, print its ID, and do not wait for it")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress, and print the image's ID only")
	flags.StringVar(&o.progress, "progress", "auto", "progress on standard error: "+strings.Join(progressModes, ", ")+"; quiet is --quiet")
	flags.StringVar(&o.format, "format", "text", "outcome on standard output: text or json")
}

func (o *options) addCacheFlags(flags *pflag.FlagSet) {
	flags.StringArrayVar(&o.cacheFromFlags, "cache-from", nil, "cache to read steps from: IMAGE or type=TYPE[,KEY=VALUE] (repeatable)")
	flags.StringArrayVar(&o.cacheToFlags, "cache-to", nil, "cache to write steps to: IMAGE or type=TYPE[,KEY=VALUE] (repeatable)")
	connect.FromEnv(flags, &o.cacheDir, "cache-dir", "KILN_CACHE_DIR",
		"`directory` of this host to read steps from before and to write all steps to afterwards, under the project's name (or KILN_CACHE_DIR)")
	connect.AddAddress(flags, connect.CacheManager, &o.cacheManager)
	if o.registryCache {
		connect.FromEnv(flags, &o.cacheRepository, "cache-repository", "KILN_CACHE_REPOSITORY",
			"repository below which the project's cache lives (or KILN_CACHE_REPOSITORY; default: cache in the profile's registry)")
		flags.StringVar(&o.cacheScope, "cache-scope", "", "`scope` of the project's cache, for example a branch (default: one by platforms and target)")
		flags.StringArrayVar(&o.cacheFromScopes, "cache-from-scope", nil, "further `scope` of the project's cache to read (repeatable)")
	}
}

// ignored are flags of docker build that docker buildx takes and does not heed,
// and what it says of them. The builds are the same without.
var ignored = map[string]string{
	"compress":     "BuildKit sends contexts in its own way",
	"isolation":    "BuildKit has no isolation technologies",
	"security-opt": "use RUN --security=insecure with --allow security.insecure",
	"squash":       "use a multi-stage Dockerfile",
	"rm":           "BuildKit leaves no intermediate containers",
	"force-rm":     "BuildKit leaves no intermediate containers",
}

func addIgnoredFlags(flags *pflag.FlagSet) {
	for name := range ignored {
		switch name {
		case "isolation":
			flags.String(name, "", "without effect")
		case "security-opt":
			flags.StringSlice(name, nil, "without effect")
		default:
			flags.Bool(name, name == "rm", "without effect")
		}
		_ = flags.MarkHidden(name)
	}
}

// warnIgnored says which flags have no effect, and which file has none.
func (o *options) warnIgnored(flags *pflag.FlagSet, stderr io.Writer) {
	flags.Visit(func(f *pflag.Flag) {
		if why, ok := ignored[f.Name]; ok {
			_, _ = fmt.Fprintf(stderr, "warning: --%s has no effect, as with docker buildx: %s\n", f.Name, why)
		}
	})
	policy := filepath.Join(o.dockerfileDir, o.dockerfileName+".rego")
	if _, err := os.Stat(policy); err == nil && o.dockerForm && len(o.policies) == 0 {
		_, _ = fmt.Fprintf(stderr, "warning: %s is a policy of docker buildx, which kiln does not evaluate: "+
			"the builder's own policy says which sources builds may use (--policy disabled=true hides this)\n", policy)
	}
}

// detachable are the flags that a build which goes on by itself can heed.
var detachable = []string{
	"tag", "file", "project", "target", "platform", "build-arg", "label", "secret", "ssh", "no-cache", "no-cache-filter", "pull", "push", "cache-repository",
	"cache-scope", "cache-from-scope", "cache-from", "cache-to", "detach", "quiet", "progress", "format", "profile", "builder", "cache-manager",
	"tls-ca", "tls-cert", "tls-key", "tls-server-name", "token-file", "insecure", "load", "cache-dir",
}

// checkDetached refuses flags that --detach cannot heed.
func (o *options) checkDetached(flags *pflag.FlagSet) error {
	if !o.detach {
		return nil
	}
	var err error
	flags.Visit(func(f *pflag.Flag) {
		if err == nil && !slices.Contains(detachable, f.Name) && ignored[f.Name] == "" {
			err = fmt.Errorf("--%s needs a connection until the build's end, and --detach leaves; leave one of them out", f.Name)
		}
	})
	if err == nil && o.contextDir == "" {
		err = fmt.Errorf("--detach uploads a directory; name one as the context, or leave --detach out")
	}
	return err
}

// oneOf says which values a flag takes when it has another.
func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("--%s is %q; use %s", flag, value, strings.Join(allowed, ", "))
}
