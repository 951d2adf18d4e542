package rpc_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// pki is an authority, and a certificate for the server and for a client.
type pki struct {
	ca     *testkit.CA
	server *configv1.ServerTLS
	client *configv1.ClientTLS
}

func newPKI(t *testing.T, clientURIs ...string) *pki {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	p := &pki{ca: testkit.NewCA(t, "test authority")}
	p.server = &configv1.ServerTLS{CertFile: file("server.pem"), KeyFile: file("server.key")}
	p.client = &configv1.ClientTLS{CaFile: p.ca.File, CertFile: file("client.pem"), KeyFile: file("client.key")}
	p.ca.Issue(t, p.server.CertFile, p.server.KeyFile, "first server")
	p.ca.Issue(t, p.client.CertFile, p.client.KeyFile, "client", clientURIs...)
	return p
}

// mutual is a server configuration with mTLS on all addresses.
func (p *pki) mutual(rules ...*configv1.AccessRule) *configv1.ServerConfig {
	p.server.ClientCaFile = p.ca.File
	return &configv1.ServerConfig{Listen: "127.0.0.1:0", HttpListen: "off", Tls: p.server, Access: rules}
}

func getOne(ctx context.Context, r *rig) error {
	_, err := r.client.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: "b"})
	return err
}

// serverName shakes hands anew and returns the common name of the server.
func serverName(t *testing.T, r *rig, p *pki) string {
	t.Helper()
	config, err := auth.ClientTLS(p.client)
	if err != nil {
		t.Fatal(err)
	}
	config.NextProtos = []string{"h2"}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: soon}, "tcp", r.server.Addr(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

func TestTLSWithoutClientCertificates(t *testing.T) {
	p := newPKI(t)
	config := &configv1.ServerConfig{Listen: "127.0.0.1:0", Tls: p.server}
	var id auth.Identity
	r := start(t, rigOptions{config: config, tls: &configv1.ClientTLS{CaFile: p.ca.File}, impl: &builds{
		get: func(ctx context.Context, _ *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
			id = auth.FromContext(ctx)
			return &builderv1.GetBuildResponse{}, nil
		},
	}})
	if err := getOne(within(t), r); err != nil {
		t.Fatal(err)
	}
	if !id.Anonymous() {
		t.Errorf("identity is %v, want none", id)
	}
	plain, err := rpc.Dial(r.server.Addr(), rpc.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	_, err = builderv1.NewBuilderServiceClient(plain).GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: "b"})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("plain text to a TLS server: %v", err)
	}
}

func TestMutualTLSIdentifiesCallers(t *testing.T) {
	for name, test := range map[string]struct {
		uris []string
		want string
	}{
		"URI name":    {uris: []string{"spiffe://example.org/ci", "spiffe://example.org/second"}, want: "spiffe://example.org/ci"},
		"common name": {want: "client"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t, test.uris...)
			var id auth.Identity
			rule := &configv1.AccessRule{Identities: []string{test.want}, Methods: []string{"*"}}
			r := start(t, rigOptions{config: p.mutual(rule), tls: p.client, impl: &builds{
				get: func(ctx context.Context, _ *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
					id = auth.FromContext(ctx)
					return &builderv1.GetBuildResponse{}, nil
				},
			}})
			if err := getOne(within(t), r); err != nil {
				t.Fatal(err)
			}
			if id.Name != test.want {
				t.Errorf("identity is %q, want %q", id.Name, test.want)
			}
			if !strings.Contains(r.log.String(), `"identity":"`+test.want+`"`) {
				t.Error("the log does not name the caller")
			}
		})
	}
}

func TestMutualTLSRefusesStrangers(t *testing.T) {
	p := newPKI(t)
	r := start(t, rigOptions{config: p.mutual(), tls: p.client})
	stranger := newPKI(t)
	for name, config := range map[string]*configv1.ClientTLS{
		"no certificate":           {CaFile: p.ca.File},
		"of another authority":     {CaFile: p.ca.File, CertFile: stranger.client.CertFile, KeyFile: stranger.client.KeyFile},
		"not trusting the server":  {CaFile: stranger.ca.File, CertFile: p.client.CertFile, KeyFile: p.client.KeyFile},
		"expecting another server": {CaFile: p.ca.File, CertFile: p.client.CertFile, KeyFile: p.client.KeyFile, ServerName: "other.example.org"},
	} {
		conn, err := rpc.Dial(r.server.Addr(), rpc.ClientOptions{TLS: config})
		if err != nil {
			t.Fatal(err)
		}
		_, err = builderv1.NewBuilderServiceClient(conn).GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: "b"})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v, want Unavailable", name, err)
		}
		_ = conn.Close()
	}
}

func TestAccessRules(t *testing.T) {
	const service = "/kiln.builder.v1.BuilderService/"
	rules := []*configv1.AccessRule{
		{Identities: []string{"spiffe://example.org/ci/*"}, Methods: []string{service + "GetBuild", service + "List*"}},
		{Identities: []string{"*"}, Methods: []string{"/grpc.health.v1.Health/*"}},
	}
	p := newPKI(t, "spiffe://example.org/ci/runner")
	r := start(t, rigOptions{config: p.mutual(rules...), tls: p.client})
	if err := getOne(within(t), r); err != nil {
		t.Errorf("an allowed call: %v", err)
	}
	if _, err := healthgrpc.NewHealthClient(r.conn).Check(within(t), &healthgrpc.HealthCheckRequest{}); err != nil {
		t.Errorf("health: %v", err)
	}
	st := refused(t, r.buildErr(within(t), inlineBuild(nil)), codes.PermissionDenied, "DENIED")
	if !strings.Contains(st.Message(), "spiffe://example.org/ci/runner may not call "+service+"Build") {
		t.Errorf("message: %q", st.Message())
	}
	_, err := r.client.CancelBuild(within(t), &builderv1.CancelBuildRequest{BuildId: "b"})
	refused(t, err, codes.PermissionDenied, "DENIED")
	// A service that nothing serves tells a stranger nothing.
	err = r.conn.Invoke(within(t), "/other.Service/Call", &builderv1.ListDaemonsRequest{}, &builderv1.ListDaemonsResponse{})
	refused(t, err, codes.PermissionDenied, "DENIED")
}

func TestNoRulesMeansDeniedWhereOthersReach(t *testing.T) {
	p := newPKI(t)
	config := p.mutual()
	config.Listen = "0.0.0.0:0"
	r := start(t, rigOptions{config: config, tls: p.client})
	_, port, err := net.SplitHostPort(r.server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	dial := func(tlsConfig *configv1.ClientTLS) builderv1.BuilderServiceClient {
		conn, err := rpc.Dial("localhost:"+port, rpc.ClientOptions{TLS: tlsConfig})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return builderv1.NewBuilderServiceClient(conn)
	}
	_, err = dial(p.client).GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: "b"})
	refused(t, err, codes.PermissionDenied, "DENIED")
}

func TestNoRulesAndNoIdentityIsUnauthenticated(t *testing.T) {
	p := newPKI(t)
	config := &configv1.ServerConfig{Listen: "0.0.0.0:0", Tls: p.server}
	r := start(t, rigOptions{config: config, tls: p.client})
	_, port, err := net.SplitHostPort(r.server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rpc.Dial("localhost:"+port, rpc.ClientOptions{TLS: &configv1.ClientTLS{CaFile: p.ca.File}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, err = builderv1.NewBuilderServiceClient(conn).GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: "b"})
	refused(t, err, codes.Unauthenticated, "UNAUTHENTICATED")
}

func TestServerCertificateIsReloadedAndABadOneIsNot(t *testing.T) {
	p := newPKI(t)
	rule := &configv1.AccessRule{Identities: []string{"*"}, Methods: []string{"*"}}
	r := start(t, rigOptions{config: p.mutual(rule), tls: p.client})
	if name := serverName(t, r, p); name != "first server" {
		t.Fatalf("the server is %q", name)
	}
	p.ca.Issue(t, p.server.CertFile, p.server.KeyFile, "second server")
	testkit.Eventually(t, soon, func() bool { return serverName(t, r, p) == "second server" })

	// A key that does not fit, and then no certificate at all.
	other := newPKI(t)
	copyFile(t, other.server.KeyFile, p.server.KeyFile)
	testkit.Eventually(t, soon, func() bool {
		return serverName(t, r, p) == "second server" && strings.Contains(r.log.String(), "files changed and do not load")
	})
	if err := os.Remove(p.server.CertFile); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // Longer than the files are believed.
	if name := serverName(t, r, p); name != "second server" {
		t.Errorf("with broken files the server is %q", name)
	}
	if err := getOne(within(t), r); err != nil {
		t.Errorf("a call with broken files: %v", err)
	}
	p.ca.Issue(t, p.server.CertFile, p.server.KeyFile, "third server")
	testkit.Eventually(t, soon, func() bool { return serverName(t, r, p) == "third server" })
}

func TestClientAuthoritiesAndClientCertificatesAreReloaded(t *testing.T) {
	p := newPKI(t)
	rule := &configv1.AccessRule{Identities: []string{"*"}, Methods: []string{"*"}}
	r := start(t, rigOptions{config: p.mutual(rule), tls: p.client})
	if err := getOne(within(t), r); err != nil {
		t.Fatal(err)
	}
	// The authority is replaced: the whole pair of server and client with it.
	next := testkit.NewCA(t, "next authority")
	copyFile(t, next.File, p.ca.File)
	next.Issue(t, p.server.CertFile, p.server.KeyFile, "next server")
	next.Issue(t, p.client.CertFile, p.client.KeyFile, "next client")
	testkit.Eventually(t, soon, func() bool {
		conn, err := rpc.Dial(r.server.Addr(), rpc.ClientOptions{TLS: p.client})
		if err != nil {
			return false
		}
		defer func() { _ = conn.Close() }()
		_, err = builderv1.NewBuilderServiceClient(conn).GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: "b"})
		return err == nil && strings.Contains(r.log.String(), `"identity":"next client"`)
	})
}

// A client that lives through a rotation connects with what the files hold then.
func TestLongLivedClientFollowsItsFiles(t *testing.T) {
	p := newPKI(t)
	rule := &configv1.AccessRule{Identities: []string{"*"}, Methods: []string{"*"}}
	config := p.mutual(rule)
	config.Listen = "unix://" + testkit.TempUnixSocket(t)
	p.client.ServerName = "localhost"
	first := start(t, rigOptions{config: config, tls: p.client})
	if err := getOne(within(t), first); err != nil {
		t.Fatal(err)
	}
	first.stop()
	if err := first.wait(t); err != nil {
		t.Fatal(err)
	}
	next := testkit.NewCA(t, "next authority")
	copyFile(t, next.File, p.ca.File)
	next.Issue(t, p.server.CertFile, p.server.KeyFile, "next server")
	next.Issue(t, p.client.CertFile, p.client.KeyFile, "next client")
	start(t, rigOptions{config: config, tls: p.client})
	testkit.Eventually(t, soon, func() bool { return getOne(within(t), first) == nil })
}

func TestHTTPOverTLSNeedsNoClientCertificate(t *testing.T) {
	p := newPKI(t)
	config := p.mutual()
	config.HttpListen = "0.0.0.0:0"
	r := start(t, rigOptions{config: config, tls: p.client})
	_, port, err := net.SplitHostPort(r.server.HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(p.ca.File)
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{Timeout: soon, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool},
	}}
	resp, err := client.Get("https://localhost:" + port + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "ok\n" {
		t.Errorf("/healthz: %q %v", body, err)
	}
}

func TestBadCertificatesAtStart(t *testing.T) {
	p := newPKI(t)
	missing := filepath.Join(t.TempDir(), "missing.pem")
	for name, config := range map[string]*configv1.ServerTLS{
		"no certificate": {CertFile: missing, KeyFile: p.server.KeyFile},
		"no authorities": {CertFile: p.server.CertFile, KeyFile: p.server.KeyFile, ClientCaFile: missing},
		"not PEM":        {CertFile: p.server.CertFile, KeyFile: p.server.KeyFile, ClientCaFile: p.server.KeyFile},
		"wrong key":      {CertFile: p.server.CertFile, KeyFile: p.client.KeyFile},
	} {
		if _, err := rpc.NewServer(rpc.ServerOptions{Config: &configv1.ServerConfig{Listen: "127.0.0.1:0", Tls: config}}); err == nil {
			t.Errorf("%s: NewServer took it", name)
		}
	}
	for name, config := range map[string]*configv1.ClientTLS{
		"no authorities":   {CaFile: missing},
		"key alone":        {KeyFile: p.client.KeyFile},
		"certificate only": {CertFile: p.client.CertFile},
		"wrong key":        {CertFile: p.client.CertFile, KeyFile: p.server.KeyFile},
	} {
		if _, err := rpc.Dial("localhost:1", rpc.ClientOptions{TLS: config}); err == nil {
			t.Errorf("%s: Dial took it", name)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
