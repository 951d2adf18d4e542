package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/moby/buildkit/client"
	bkbuild "github.com/moby/buildkit/cmd/buildctl/build"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/tonistiigi/fsutil"

	"github.com/kilnbuild/kiln/pkg/telemetry"
	kilnclient "github.com/kilnbuild/kiln/proto/client"
)

// solveOpt says in BuildKit's terms what the options ask for.
func (o *options) solveOpt(ctx context.Context, ref string, stderr io.Writer) (client.SolveOpt, error) {
	opt := client.SolveOpt{Ref: ref, Frontend: "dockerfile.v0", SharedKey: o.sharedKey()}
	var err error
	if opt.FrontendAttrs, err = o.frontendAttrs(); err != nil {
		return opt, err
	}
	contextFS, err := fsutil.NewFS(o.contextDir)
	if err != nil {
		return opt, err
	}
	dockerfileFS, err := fsutil.NewFS(o.dockerfileDir)
	if err != nil {
		return opt, err
	}
	opt.LocalMounts = map[string]fsutil.FS{"context": contextFS, "dockerfile": dockerfileFS}
	if opt.Session, err = o.attachables(stderr); err != nil {
		return opt, err
	}
	if opt.Exports, err = o.exports(ctx, stderr); err != nil {
		return opt, err
	}
	if o.registryCache {
		from, to := o.cacheEntries()
		opt.CacheImports, opt.CacheExports = []client.CacheOptionsEntry{from}, []client.CacheOptionsEntry{to}
	}
	if o.cacheDir != "" {
		opt.CacheExports = append(opt.CacheExports, client.CacheOptionsEntry{
			Type: "local", Attrs: map[string]string{"dest": o.cacheDir, "tag": o.project, "mode": "max"},
		})
	}
	return opt, nil
}

// cacheEntries are where build-registry reads steps from and writes them to.
func (o *options) cacheEntries() (from, to client.CacheOptionsEntry) {
	ref := o.cacheRepository + "/" + o.project + ":" + o.cacheScope
	return client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": ref}},
		client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{
			"ref": ref, "mode": "max", "image-manifest": "true", "oci-mediatypes": "true",
		}}
}

// connection says to BuildKit's client how to reach the builder.
func (o *options) connection(tel *telemetry.Telemetry) (address string, _ []client.ClientOpt) {
	address = o.conn.Address
	if !strings.Contains(address, "://") {
		address = "tcp://" + address
	}
	opts := []client.ClientOpt{client.WithTracerProvider(tel.Tracer)}
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
func (o *options) sharedKey() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	sum := sha256.Sum256([]byte(host + "\x00" + o.contextDir + "\x00" + o.dockerfileDir))
	return "kiln:" + o.project + ":" + hex.EncodeToString(sum[:8])
}

func (o *options) frontendAttrs() (map[string]string, error) {
	attrs := map[string]string{"filename": o.dockerfileName}
	if o.target != "" {
		attrs["target"] = o.target
	}
	if len(o.platforms) > 0 {
		attrs["platform"] = strings.Join(o.platforms, ",")
	}
	if o.noCache {
		attrs["no-cache"] = ""
	}
	if o.pull {
		attrs["image-resolve-mode"] = "pull"
	}
	args, err := pairs("build-arg", o.buildArgs, true)
	if err != nil {
		return nil, err
	}
	for name, value := range args {
		attrs["build-arg:"+name] = value
	}
	labels, err := pairs("label", o.labels, false)
	if err != nil {
		return nil, err
	}
	for name, value := range labels {
		attrs["label:"+name] = value
	}
	return attrs, nil
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
	if len(o.ssh) > 0 {
		configs, err := bkbuild.ParseSSH(o.ssh)
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

func (o *options) exports(ctx context.Context, stderr io.Writer) ([]client.ExportEntry, error) {
	switch {
	case o.push:
		return []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": o.tag, "push": "true"}}}, nil
	case o.load:
		output, err := dockerLoad(ctx, stderr)
		if err != nil {
			return nil, err
		}
		return []client.ExportEntry{{Type: client.ExporterDocker, Attrs: map[string]string{"name": o.tag}, Output: output}}, nil
	default:
		return nil, nil
	}
}
