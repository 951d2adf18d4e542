package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/moby/buildkit/client"
	bkbuild "github.com/moby/buildkit/cmd/buildctl/build"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	sourcepolicy "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/tonistiigi/fsutil"

	"github.com/kilnbuild/kiln/pkg/cachescope"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	kilnclient "github.com/kilnbuild/kiln/proto/client"
)

// solveOpt says in BuildKit's terms what the options ask for.
func (o *options) solveOpt(ctx context.Context, ref string, stdout, stderr io.Writer) (client.SolveOpt, error) {
	opt := client.SolveOpt{Ref: ref, Frontend: "dockerfile.v0", SharedKey: o.sharedKey(), LocalMounts: map[string]fsutil.FS{}}
	var err error
	if opt.FrontendAttrs, err = o.frontendAttrs(); err != nil {
		return opt, err
	}
	steps, rights, _, err := o.steps.attrs()
	if err != nil {
		return opt, err
	}
	maps.Copy(opt.FrontendAttrs, steps)
	opt.AllowedEntitlements = rights
	if opt.Session, err = o.attachables(stderr); err != nil {
		return opt, err
	}
	if err := o.setInputs(&opt); err != nil {
		return opt, err
	}
	if opt.Exports, err = o.exports(ctx, stdout, stderr); err != nil {
		return opt, err
	}
	if opt.SourcePolicy, err = readSourcePolicy(); err != nil {
		return opt, err
	}
	return opt, o.setCaches(&opt)
}

// setCaches says where steps are read from and written to, but for the reads of
// --cache-dir, which need a lease.
func (o *options) setCaches(opt *client.SolveOpt) error {
	for _, entry := range o.cacheFrom {
		opt.CacheImports = append(opt.CacheImports, client.CacheOptionsEntry{Type: entry.Type, Attrs: maps.Clone(entry.Attrs)})
	}
	for _, entry := range o.cacheTo {
		opt.CacheExports = append(opt.CacheExports, client.CacheOptionsEntry{Type: entry.Type, Attrs: maps.Clone(entry.Attrs)})
	}
	if inline, _ := strconv.ParseBool(opt.FrontendAttrs["build-arg:BUILDKIT_INLINE_CACHE"]); inline {
		opt.CacheExports = append(opt.CacheExports, client.CacheOptionsEntry{Type: "inline", Attrs: map[string]string{}})
	}
	if o.registryCache {
		from, to := o.cacheEntries()
		opt.CacheImports, opt.CacheExports = append(opt.CacheImports, from...), append(opt.CacheExports, to)
	}
	if o.cacheDir != "" {
		opt.CacheExports = append(opt.CacheExports, client.CacheOptionsEntry{
			Type: "local", Attrs: map[string]string{"dest": o.cacheDir, "tag": o.project, "mode": "max"},
		})
	}
	if err := o.plainPaths(opt.CacheImports, "src"); err != nil {
		return err
	}
	return o.plainPaths(opt.CacheExports, "dest")
}

// cacheEntries are where build-registry reads steps from and writes them to.
func (o *options) cacheEntries() (from []client.CacheOptionsEntry, to client.CacheOptionsEntry) {
	imports := o.usualScopes()
	if o.cacheScope != "" {
		imports = []string{o.cacheScope}
	}
	scope := imports[0]
	repository := o.cacheRepository + "/" + o.project + ":"
	for _, name := range append(imports, o.cacheFromScopes...) {
		from = append(from, client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": repository + name}})
	}
	return from, client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{
		"ref": repository + scope, "mode": "max", "image-manifest": "true", "oci-mediatypes": "true",
	}}
}

// usualScopes are the scopes that a build reads when it names none, the nearest
// first: the first one is its own, which it writes to, and the others are of builds
// that may share steps with it.
func (o *options) usualScopes() []string {
	own := cachescope.Build{Platforms: o.platforms, Target: o.target, Image: o.image()}
	if own.Image == o.project {
		own.Image = ""
	}
	inside, err := filepath.Rel(o.contextDir, filepath.Join(o.dockerfileDir, o.dockerfileName))
	if err == nil && o.dockerfileName != "" && filepath.IsLocal(inside) && inside != "Dockerfile" {
		own.Dockerfile = inside
	}
	lastStage, plain := own, own
	lastStage.Target = ""
	plain.Target, plain.Image, plain.Dockerfile = "", "", ""
	var all []string
	for _, b := range []cachescope.Build{own, lastStage, plain, {}} {
		if name := b.Name(); !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// readSourcePolicy reads the policy that EXPERIMENTAL_BUILDKIT_SOURCE_POLICY names.
func readSourcePolicy() (*sourcepolicy.Policy, error) {
	const variable = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"
	path := os.Getenv(variable)
	if path == "" {
		return nil, nil //nolint:nilnil // There is none.
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	policy := &sourcepolicy.Policy{}
	if err := json.Unmarshal(text, policy); err != nil {
		return nil, fmt.Errorf("%s names %s, which is no source policy: %w", variable, path, err)
	}
	return policy, nil
}

// connection says to BuildKit's client how to reach the builder.
func (o *options) connection(tel *telemetry.Telemetry) (address string, _ []client.ClientOpt) {
	address = o.conn.Address
	if !strings.Contains(address, "://") {
		address = "tcp://" + address
	}
	opts := []client.ClientOpt{client.WithTracerProvider(tel.Tracer), client.WithGRPCDialOption(kilnclient.Keepalive())}
	if o.conn.Token != "" {
		opts = append(opts, client.WithGRPCDialOption(kilnclient.TokenFile(o.conn.Token, o.conn.Local())))
	}
	if !o.conn.TLS() {
		return address, opts
	}
	if o.conn.CA != "" {
		opts = append(opts, client.WithServerConfig(o.conn.ServerName, o.conn.CA))
	} else {
		opts = append(opts, client.WithServerConfigSystem(o.conn.ServerName))
	}
	if o.conn.Cert != "" {
		opts = append(opts, client.WithCredentials(o.conn.Cert, o.conn.Key))
	}
	return address, opts
}

// sharedKey names the context and the Dockerfile's directory to the daemon, which keeps what it was sent under
// that name and asks for the changed files only.
func (o *options) sharedKey() string { return o.keyOf(o.contextDir + "\x00" + o.dockerfileDir) }

// keyOf returns the key of a directory of this host.
func (o *options) keyOf(dir string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	sum := sha256.Sum256([]byte(host + "\x00" + dir))
	return "kiln:" + o.project + ":" + hex.EncodeToString(sum[:8])
}

func (o *options) frontendAttrs() (map[string]string, error) {
	attrs := map[string]string{}
	if o.target != "" {
		attrs["target"] = o.target
	}
	if len(o.platforms) > 0 {
		attrs["platform"] = strings.Join(o.platforms, ",")
	}
	if len(o.noCacheFilter) > 0 {
		attrs["no-cache"] = strings.Join(o.noCacheFilter, ",")
	}
	if o.noCache {
		attrs["no-cache"] = ""
	}
	if o.pull {
		attrs["image-resolve-mode"] = "pull"
	}
	args, err := o.buildArguments()
	if err != nil {
		return nil, err
	}
	for name, value := range args {
		attrs["build-arg:"+name] = value
	}
	if multi, _ := strconv.ParseBool(args["BUILDKIT_MULTI_PLATFORM"]); multi {
		attrs["multi-platform"] = "true"
	}
	labels, err := pairs("label", o.labels, false)
	if err != nil {
		return nil, err
	}
	for name, value := range labels {
		attrs["label:"+name] = value
	}
	return attrs, o.setAttests(attrs)
}

// buildArguments are those of the flags, SOURCE_DATE_EPOCH and, in Docker's form,
// the proxies of Docker's configuration.
func (o *options) buildArguments() (map[string]string, error) {
	args, err := pairs("build-arg", o.buildArgs, true)
	if err != nil || !o.dockerForm {
		return args, err
	}
	const epoch = "SOURCE_DATE_EPOCH"
	if value := os.Getenv(epoch); value != "" && args[epoch] == "" {
		args[epoch] = value
	}
	given := map[string]bool{}
	for name := range args {
		given[strings.ToLower(name)] = true
	}
	for name, value := range config.LoadDefaultConfigFile(io.Discard).ParseProxyConfig("default", nil) {
		if value != nil && !given[strings.ToLower(name)] {
			args[name] = *value
		}
	}
	return args, nil
}

// attachables answer the daemon's questions during the build: for registry
// credentials, secrets and SSH keys.
func (o *options) attachables(stderr io.Writer) ([]session.Attachable, error) {
	all := []session.Attachable{authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: authprovider.LoadAuthConfig(config.LoadDefaultConfigFile(stderr)),
	})}
	if len(o.secrets) > 0 {
		secrets, err := bkbuild.ParseSecret(o.secrets)
		if err != nil {
			return nil, fmt.Errorf("--secret: %w; write it like id=npmrc,src=FILE or id=token,env=VARIABLE", err)
		}
		all = append(all, secrets)
	}
	ssh := o.ssh
	if len(ssh) == 0 && isGitSSH(o.contextURL) {
		ssh = []string{"default"} // The repository is fetched with it.
	}
	if len(ssh) > 0 {
		configs, err := bkbuild.ParseSSH(ssh)
		if err != nil {
			return nil, fmt.Errorf("--ssh: %w; write it like default or ID=SOCKET", err)
		}
		agent, err := sshprovider.NewSSHAgentProvider(configs)
		if err != nil {
			return nil, fmt.Errorf("--ssh: %w; start an SSH agent, or name a key", err)
		}
		all = append(all, agent)
	}
	return all, nil
}
