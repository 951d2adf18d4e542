package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/telemetry"
)

// UserAgent tells the janitor's requests from those of users, whose pulls
// prolong the life of what they pull.
const UserAgent = "kiln-janitor"

// transport sends requests to the registry by the scheme that it speaks.
//
// The library decides on a scheme by the look of the host name, and falls back
// to plain HTTP for private addresses, credentials included. So the library is
// left with one scheme, the nominal one, and this is where the real one is set:
// plain HTTP only where the configuration or a loopback address allows it.
type transport struct {
	host    string
	nominal string // the scheme that the library may use
	inner   http.RoundTripper
	real    atomic.Value // string; unset: to be found out
}

// newTransport returns a transport to the registry at host. Loopback registries
// are asked which scheme they speak. fresh has each request make a connection.
func newTransport(host, nominal string, plainHTTP bool, roots *x509.CertPool, tel *telemetry.Telemetry, fresh bool) *transport {
	base := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   atOnce,
		ForceAttemptHTTP2:     true,
		DisableKeepAlives:     fresh,
	}
	t := &transport{host: host, nominal: nominal, inner: otelhttp.NewTransport(base,
		otelhttp.WithTracerProvider(tel.Tracer),
		otelhttp.WithMeterProvider(tel.Meter),
		otelhttp.WithPropagators(tel.Propagator),
		otelhttp.WithSpanNameFormatter(func(_ string, req *http.Request) string { return "registry " + req.Method }),
		// Health checks have no trace: they are too many for one each.
		otelhttp.WithFilter(func(req *http.Request) bool { return trace.SpanContextFromContext(req.Context()).IsValid() }),
	)}
	switch {
	case plainHTTP:
		t.real.Store("http")
	case !isLoopback(host):
		t.real.Store("https")
	}
	return t
}

// authorities are those of a file; nil, those of the system, without one.
func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.Invalid("registry.ca_file", file, "cannot be read: "+err.Error(), "name a PEM file that the janitor's user may read")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.Invalid("registry.ca_file", file, "holds no PEM certificate", "name the file of the authority that the registry's certificate comes from")
	}
	return pool, nil
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	real, err := t.scheme(req.Context())
	if err != nil {
		return nil, &silence{err}
	}
	sent := req.Clone(req.Context())
	sent.Header.Set("User-Agent", UserAgent)
	switch {
	case req.URL.Host != t.host && real == "https" && req.URL.Scheme != "https":
		return nil, fmt.Errorf("%s names %s, which is not https", t.host, req.URL.Redacted())
	case req.URL.Host != t.host: // A token server.
	case req.URL.Scheme != t.nominal:
		return nil, fmt.Errorf("%s is not asked by %s", t.host, req.URL.Scheme)
	default:
		sent.URL.Scheme = real
	}
	resp, err := t.inner.RoundTrip(sent)
	if err != nil {
		return nil, &silence{err}
	}
	resp.Request = req // Links are resolved against what was asked for.
	return resp, nil
}

// silence is that the registry, or its token server, gave no answer.
type silence struct{ err error }

func (s *silence) Error() string { return s.err.Error() }
func (s *silence) Unwrap() error { return s.err }

// CloseIdleConnections is called by http.Client.CloseIdleConnections.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.inner.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// scheme is what the registry speaks. Once it has answered that stays.
func (t *transport) scheme(ctx context.Context) (string, error) {
	if known, ok := t.real.Load().(string); ok {
		return known, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+t.host+"/v2/", nil)
	if err != nil {
		return "", err
	}
	real := "https"
	resp, err := t.inner.RoundTrip(req)
	greeting, isOther := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case isOther && string(greeting.RecordHeader[:]) == "HTTP/":
		real = "http"
	case err != nil:
		return "", err
	default:
		_ = resp.Body.Close() // What it says is of no interest.
	}
	t.real.Store(real)
	return real, nil
}

// isLoopback says whether a "host:port" is on this machine.
func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}
