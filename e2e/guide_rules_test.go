package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// guideRules returns the access rules that a guide shows, as the text of a policy file. Rules
// in the configuration of a service are taken out of it.
func guideRules(t *testing.T, guide string) (files []string) {
	t.Helper()
	text := string(labtest.Must(os.ReadFile(filepath.Join("../docs/guides", guide)))(t))
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(text, -1) {
		if !strings.Contains(block[1], "identities:") {
			continue
		}
		var shown struct {
			Rules  []any `yaml:"rules"`
			Server struct {
				Access []any `yaml:"access"`
			} `yaml:"server"`
		}
		if err := yaml.Unmarshal([]byte(block[1]), &shown); err != nil {
			t.Fatalf("%s: %v in\n%s", guide, err, block[1])
		}
		rules := append(shown.Rules, shown.Server.Access...)
		files = append(files, string(labtest.Must(yaml.Marshal(map[string]any{"rules": rules}))(t)))
	}
	if len(files) == 0 {
		t.Fatalf("%s shows no rules", guide)
	}
	return files
}

// guarded is a builder behind TLS with access rules, its daemon, and a registry.
type guarded struct {
	*stack
	pki *secured
}

// startGuarded starts a builder with the rules of a guide. The guides' registry is the lab's.
func startGuarded(t *testing.T, rules string) *guarded {
	t.Helper()
	l := labtest.New(t)
	pki := &secured{lab: l, dir: filepath.Join(l.Dir, "pki")}
	runKiln(t, "certs", "init", "--dir", pki.dir)
	runKiln(t, "certs", "issue", "builder", "--dir", pki.dir, "--host", "localhost", "--host", "127.0.0.1")
	runKiln(t, "certs", "issue", "buildkitd", "--dir", pki.dir, "--host", "localhost", "--host", "127.0.0.1")
	runKiln(t, "certs", "issue", "ci", "--dir", pki.dir, "--uri", "spiffe://example.org/ci")
	runKiln(t, "certs", "issue", "runner", "--dir", pki.dir, "--uri", "spiffe://example.org/ci/runner")
	ctx := labtest.Context(t, 2*time.Minute)
	registry := labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{}))(t)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{Registries: []string{registry.Addr}, TLS: pki.serverTLS("buildkitd")}))(t)
	labtest.Write(t, pki.dir, map[string]string{"access.yaml": strings.ReplaceAll(rules, "registry.example.org", registry.Addr)})
	token := runKiln(t, "token", "new", "spiffe://example.org/ci", "--file", pki.file("tokens.yaml")).Stdout
	pki.tokens = map[string]string{"ci": strings.TrimSpace(token)}
	builder := labtest.Must(l.StartBuilder(ctx, &configv1.BuilderConfig{
		Server:          &configv1.ServerConfig{Tls: pki.serverTLS("builder"), PolicyFile: pki.file("access.yaml"), TokensFile: pki.file("tokens.yaml")},
		Daemons:         []*configv1.DaemonConfig{{Name: "lab", Address: daemon.TCP, Tls: pki.clientTLS("builder")}},
		CacheRepository: registry.Addr + "/cache",
	}, lab.ServiceOptions{}))(t)
	s := &stack{lab: l, src: filepath.Join(l.Dir, "src"), Stack: &lab.Stack{Registry: registry, Buildkitd: daemon, Builder: builder}}
	labtest.Write(t, s.src, map[string]string{
		"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n",
		"bake.hcl":   fmt.Sprintf("group \"default\" { targets = [\"a\", \"b\"] }\ntarget \"a\" {\n tags = [%q]\n output = [\"type=registry\"]\n}\ntarget \"b\" {\n tags = [%q]\n output = [\"type=registry\"]\n}\n", s.ref("web/bake-a"), s.ref("web/bake-b")),
	})
	return &guarded{stack: s, pki: pki}
}

// exec runs a command in the directory of the build.
func (g *guarded) exec(t *testing.T, name string, config string, args ...string) (lab.Output, error) {
	t.Helper()
	return lab.Exec(labtest.Context(t, time.Minute), lab.Command{
		Name: name, Path: labtest.Must(lab.Bin(name))(t), Args: args, Dir: g.src,
		Env: []string{"BUILDX_CONFIG=" + config, "DOCKER_CONFIG=" + config},
	})
}

// usesAll builds, pushes, bakes and lists with unmodified buildctl and buildx. Each gets its options for
// the connection.
func (g *guarded) usesAll(t *testing.T, buildctl []string, endpoint string, driver ...string) {
	t.Helper()
	config := t.TempDir()
	must := func(name string, args ...string) lab.Output {
		t.Helper()
		return labtest.Must(g.exec(t, name, config, args...))(t)
	}
	with := func(args ...string) []string { return append(append([]string{}, buildctl...), args...) }
	solve := with("build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context=.", "--local", "dockerfile=.")
	metadata := filepath.Join(t.TempDir(), "metadata.json")

	must("buildctl", with("debug", "workers")...)
	must("buildctl", solve...)
	must("buildctl", append(solve, "--metadata-file", metadata, "--output", "type=image,push=true,name="+g.ref("web/buildctl"))...)
	g.served(t, "web/buildctl", metadata)
	if out := must("buildctl", with("debug", "histories")...); strings.Count(out.Stdout, "COMPLETE") < 2 {
		t.Errorf("buildctl's history:\n%s", out.Stdout)
	}

	must("buildx", append([]string{"create", "--name", "kiln", "--driver", "remote", endpoint}, driver...)...)
	must("buildx", "build", "--builder", "kiln", "--progress", "plain", ".")
	must("buildx", "build", "--builder", "kiln", "--progress", "plain", "--push", "-t", g.ref("web/buildx"), "--metadata-file", metadata, ".")
	g.served(t, "web/buildx", metadata)
	must("buildx", "bake", "--builder", "kiln", "--progress", "plain", "-f", "bake.hcl")
	for _, target := range []string{"web/bake-a", "web/bake-b"} {
		labtest.Must(image.Digest(t.Context(), g.ref(target)))(t)
	}
	if out := must("buildx", "history", "ls", "--builder", "kiln", "--format", "json"); strings.Count(out.Stdout, `"ref"`) < 3 {
		t.Errorf("buildx's history:\n%s", out.Stdout)
	}
}

// served holds that the registry serves what a client's metadata name.
func (g *guarded) served(t *testing.T, repository, metadata string) {
	t.Helper()
	if digest := labtest.Must(image.Digest(t.Context(), g.ref(repository)))(t); metadataDigest(t, metadata) != digest {
		t.Errorf("%s: the registry serves %s, and the client names %s", repository, digest, metadataDigest(t, metadata))
	}
}

// The rules in the guides are all that unmodified buildctl and buildx need, over TLS with a client's
// certificate.
func TestGuides_RulesLetBuildctlAndBuildxWork(t *testing.T) {
	for guide, certificate := range map[string]string{"security.md": "ci", "from-buildx.md": "ci", "operator.md": "runner"} {
		for _, rules := range guideRules(t, guide) {
			t.Run(guide, func(t *testing.T) {
				g := startGuarded(t, rules)
				ca, cert, key := g.pki.file("ca.crt"), g.pki.file(certificate+".crt"), g.pki.file(certificate+".key")
				g.usesAll(t, []string{"--addr", "tcp://" + g.Builder.Addr, "--tlscacert", ca, "--tlscert", cert, "--tlskey", key},
					"tcp://"+g.Builder.Addr, "--driver-opt", fmt.Sprintf("cacert=%s,cert=%s,key=%s,servername=localhost", ca, cert, key))
			})
		}
	}
}

// buildctl and buildx have no option for a token. They are refused with the reason, and a proxy that
// adds the header lets them in.
func TestTokens_BuildctlAndBuildxNeedAProxy(t *testing.T) {
	g := startGuarded(t, guideRules(t, "from-buildx.md")[0])
	ca := g.pki.file("ca.crt")
	config := t.TempDir()
	if out, err := g.exec(t, "buildctl", config, "--addr", "tcp://"+g.Builder.Addr, "--tlscacert", ca, "debug", "workers"); err == nil || !strings.Contains(out.Stderr, "Unauthenticated") {
		t.Errorf("buildctl without a certificate: %v\n%s", err, out.Stderr)
	}
	labtest.Must(g.exec(t, "buildx", config, "create", "--name", "bare", "--driver", "remote", "tcp://"+g.Builder.Addr, "--driver-opt", "cacert="+ca+",servername=localhost"))(t)
	if out, err := g.exec(t, "buildx", config, "build", "--builder", "bare", "."); err == nil || !strings.Contains(out.Stderr, "Unauthenticated") {
		t.Errorf("buildx without a certificate: %v\n%s", err, out.Stderr)
	}
	proxy := "tcp://" + tokenProxy(t, g)
	g.usesAll(t, []string{"--addr", proxy}, proxy)
}

// tokenProxy serves HTTP/2 in plain text on loopback, passes all calls on to the builder over TLS, and
// adds the token. It returns its address.
func tokenProxy(t *testing.T, g *guarded) string {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(labtest.Must(os.ReadFile(g.pki.file("ca.crt")))(t))
	config := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	var upstream, downstream http.Protocols
	upstream.SetHTTP2(true)
	downstream.SetUnencryptedHTTP2(true)
	transport := &http.Transport{TLSClientConfig: config, Protocols: &upstream}
	handler := &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "https", Host: g.Builder.Addr})
			r.Out.Header.Set("Authorization", "Bearer "+g.pki.tokens["ci"])
			r.Out.Header.Set("Te", "trailers")
		},
	}
	listener := labtest.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	server := &http.Server{Handler: handler, Protocols: &downstream, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // ends by Close
	t.Cleanup(func() {
		_ = server.Close()
		transport.CloseIdleConnections()
	})
	return listener.Addr().String()
}
