package registry

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

func client(t *testing.T, address string) *Client {
	t.Helper()
	c, err := New(&configv1.RegistryConfig{Address: address}, telemetry.Discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestExplain(t *testing.T) {
	c := client(t, "localhost:5000")
	late, cancelLate := context.WithTimeout(t.Context(), 0)
	defer cancelLate()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	answer := func(status int, codes ...ggcr.ErrorCode) error {
		e := &ggcr.Error{StatusCode: status}
		for _, code := range codes {
			e.Errors = append(e.Errors, ggcr.Diagnostic{Code: code})
		}
		return e
	}
	tests := []struct {
		name string
		ctx  context.Context
		err  error
		is   error
		line string
	}{
		{"401", t.Context(), answer(401, "UNAUTHORIZED"), content.ErrDenied, "401 Unauthorized UNAUTHORIZED (check registry.username"},
		{"403", t.Context(), answer(403, "DENIED"), content.ErrDenied, "403 Forbidden DENIED"},
		{"404", t.Context(), answer(404), content.ErrNotFound, "404 Not Found (look"},
		{"405", t.Context(), answer(405, "UNSUPPORTED"), content.ErrUnsupported, "405"},
		{"500", t.Context(), answer(500, "UNKNOWN"), content.ErrBroken, "500 Internal Server Error UNKNOWN"},
		{"nonsense", t.Context(), errors.New("invalid character '<'"), content.ErrBroken, "check that a registry listens on localhost:5000"},
		{"away", t.Context(), &silence{errors.New("connection refused")}, nil, "connection refused (start the registry"},
		{"hangs", late, &silence{context.DeadlineExceeded}, nil, "did not do it in time (look"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := c.explain(test.ctx, test.err, "do it")
			if fault.KindOf(err) != fault.Unavailable || (test.is != nil && !errors.Is(err, test.is)) {
				t.Errorf("%s: %v", fault.KindOf(err), err)
			}
			for _, other := range []error{content.ErrDenied, content.ErrNotFound, content.ErrUnsupported, content.ErrBroken} {
				if errors.Is(err, other) && !errors.Is(test.is, other) {
					t.Errorf("%v is also %v", err, other)
				}
			}
			if line := fault.Line(err); !strings.Contains(line, test.line) {
				t.Error(line)
			}
		})
	}
	if err := c.explain(cancelled, answer(500), "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A loopback address is asked by the scheme that it speaks, whichever the library
// asks with, and the janitor says who it is.
func TestTransportFindsTheScheme(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("User-Agent") != UserAgent {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()

	c := client(t, plain.Listener.Addr().String())
	for range 2 { // The second time from memory.
		if err := c.Ping(t.Context()); err != nil {
			t.Error(err)
		}
	}
	// TLS is spoken there, so plain HTTP is not tried: the certificate is the error.
	err := client(t, secure.Listener.Addr().String()).Ping(t.Context())
	if err == nil || !strings.Contains(fault.Line(err), "SSL_CERT_FILE") {
		t.Errorf("got %v", err)
	}
}

// Plain HTTP is never spoken to another host by itself, though the library would
// to a private address.
func TestTransportKeepsToHTTPS(t *testing.T) {
	for _, address := range []string{"10.1.2.3:5000", "registry.example.org", "registry.local"} {
		c := client(t, address)
		if scheme, err := c.transport.scheme(t.Context()); scheme != "https" || err != nil {
			t.Errorf("%s: %s, %v", address, scheme, err)
		}
		req := httptest.NewRequest(http.MethodGet, "http://token.example.org/token", nil)
		if _, err := c.transport.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "not https") {
			t.Errorf("%s: a token server without TLS: %v", address, err)
		}
	}
}

func TestIsLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost:5000": true, "127.0.0.1": true, "127.9.9.9:1": true, "[::1]:5000": true,
		"10.0.0.1:5000": false, "localhost.example.org": false, "example.org:5000": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("%s: %t", host, got)
		}
	}
}

func TestCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	c, err := newCredentials(&configv1.RegistryConfig{Username: "joe", PasswordFile: file})
	if err != nil {
		t.Fatal(err)
	}
	write("two\r\n") // A new password is used at once.
	if got, err := c.Authorization(); err != nil || got.Password != "two" || got.Username != "joe" {
		t.Errorf("%v, %v", got, err)
	}
	for name, cfg := range map[string]*configv1.RegistryConfig{
		"no file":      {Username: "joe"},
		"no user":      {PasswordFile: file},
		"missing file": {Username: "joe", PasswordFile: file + ".not"},
	} {
		if _, err := newCredentials(cfg); err == nil || !strings.Contains(err.Error(), "registry.password_file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
