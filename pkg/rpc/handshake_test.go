package rpc_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// dialTLS connects as buildx's remote driver does: it brings TLS itself, and gRPC knows of none.
func dialTLS(t *testing.T, address string, config *tls.Config) builderv1.BuilderServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err != nil {
				return nil, err
			}
			return tls.Client(raw, config), nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return builderv1.NewBuilderServiceClient(conn)
}

func TestServer_AcceptsClientWithoutALPN(t *testing.T) {
	p := newPKI(t, "spiffe://example.org/ci")
	rule := &configv1.AccessRule{Identities: []string{"spiffe://example.org/ci"}, Methods: []string{"*"}}
	var id auth.Identity
	r := start(t, rigOptions{config: p.mutual(rule), tls: p.client, impl: &builds{
		get: func(ctx context.Context, _ *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
			id = auth.FromContext(ctx)
			return &builderv1.GetBuildResponse{}, nil
		},
	}})
	config, err := auth.ClientTLS(p.client)
	if err != nil {
		t.Fatal(err)
	}
	config.ServerName = "localhost"
	if _, err := dialTLS(t, r.server.Addr(), config).GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: "b"}); err != nil {
		t.Fatal(err)
	}
	if id.Name != "spiffe://example.org/ci" {
		t.Errorf("the caller is %q", id.Name)
	}
}

// refusal is a client whose handshake must fail.
type refusal struct {
	reason string
	client func(t *testing.T, address string)
}

// shake makes a TLS connection and waits until the server closes it.
func shake(config *tls.Config) func(*testing.T, string) {
	return func(t *testing.T, address string) {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: soon}, "tcp", address, config)
		if err != nil {
			return // the client has noticed first
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(soon))
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("the server sent %d bytes", n)
		}
	}
}

// say writes text to a plain connection and waits until the server closes it.
func say(text string) func(*testing.T, string) {
	return func(t *testing.T, address string) {
		conn, err := net.DialTimeout("tcp", address, soon)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(soon))
		if text == "" {
			return
		}
		_, _ = io.WriteString(conn, text)
		_, _ = io.Copy(io.Discard, conn)
	}
}

func clientTLS(t *testing.T, cfg *configv1.ClientTLS, change func(*tls.Config)) *tls.Config {
	t.Helper()
	config, err := auth.ClientTLS(cfg)
	if err != nil {
		t.Fatal(err)
	}
	config.ServerName, config.NextProtos = "localhost", []string{"h2"}
	if change != nil {
		change(config)
	}
	return config
}

// Each refusal is counted by its reason and, within the bound on lines, logged with the caller's
// address.
func TestServer_LogsAndCountsRefusedHandshakes(t *testing.T) {
	p, stranger := newPKI(t), newPKI(t)
	for name, refused := range map[string]refusal{
		"plain text":            {"plain_text", say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")},
		"no certificate":        {"certificate", shake(clientTLS(t, &configv1.ClientTLS{CaFile: p.ca.File}, nil))},
		"foreign certificate":   {"certificate", shake(clientTLS(t, &configv1.ClientTLS{CaFile: p.ca.File, CertFile: stranger.client.CertFile, KeyFile: stranger.client.KeyFile}, nil))},
		"distrusts the server":  {"refused_by_client", shake(clientTLS(t, &configv1.ClientTLS{CaFile: stranger.ca.File}, nil))},
		"an old version of TLS": {"protocol", shake(clientTLS(t, p.client, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }))},
		"HTTP/1.1 by ALPN":      {"protocol", shake(clientTLS(t, p.client, func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }))},
		"a port scan":           {"closed", say("")},
	} {
		t.Run(name, func(t *testing.T) {
			tel, err := telemetry.Setup(t.Context(), telemetry.Options{Service: "test", LogWriter: io.Discard})
			if err != nil {
				t.Fatal(err)
			}
			config := p.mutual()
			config.HttpListen = "127.0.0.1:0"
			r := start(t, rigOptions{config: config, tls: p.client, tel: tel})
			refused.client(t, r.server.Addr())
			refused.client(t, r.server.Addr())
			counted := regexp.MustCompile(`kiln_security_handshakes_refused_total\{[^}]*reason="` + refused.reason + `"[^}]*\} 2\b`)
			deadline := time.Now().Add(soon)
			for !counted.MatchString(metrics(t, r)) {
				if time.Now().After(deadline) {
					t.Fatalf("not counted as %s:\n%s\n%s", refused.reason, grep(metrics(t, r), "handshakes"), r.log)
				}
				time.Sleep(10 * time.Millisecond)
			}
			lines := 1
			if refused.reason == "closed" {
				lines = 0
			}
			if got := strings.Count(r.log.String(), "TLS handshake refused"); got != lines {
				t.Errorf("%d lines of the log, want %d:\n%s", got, lines, r.log)
			}
			if lines > 0 && !strings.Contains(r.log.String(), `"peer":"127.0.0.1:`) {
				t.Errorf("the log does not name the peer:\n%s", r.log)
			}
		})
	}
}

// metrics reads /metrics.
func metrics(t *testing.T, r *rig) string {
	t.Helper()
	client := &http.Client{Timeout: soon, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + r.server.HTTPAddr() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// grep returns the lines of text with part in them.
func grep(text, part string) (found string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			found += line
		}
	}
	return found
}
