package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"google.golang.org/grpc/credentials"

	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// Certificates are those of a server, whose files are read again when they change.
type Certificates struct{ current *reloaded[*tls.Config] }

// NewCertificates reads the certificates of a server. With client_ca_file every caller must
// show one, unless tokens will do, too.
func NewCertificates(cfg *configv1.ServerTLS, tokens bool, log *slog.Logger) (*Certificates, error) {
	paths := present(cfg.GetCertFile(), cfg.GetKeyFile(), cfg.GetClientCaFile())
	current, err := newReloaded("certificates", paths, log, func() (*tls.Config, error) { return readServer(cfg, tokens) })
	return &Certificates{current}, err
}

// TLS is the configuration of a listener: each new connection gets the certificates of the
// moment.
func (c *Certificates) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return c.current.get(), nil
		},
	}
}

// Status is when the certificate in use ends, and whether the files hold another that does
// not load.
func (c *Certificates) Status() (end time.Time, stale bool) {
	config, stale := c.current.status()
	return config.Certificates[0].Leaf.NotAfter, stale
}

func readServer(cfg *configv1.ServerTLS, tokens bool) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cfg.GetCertFile(), cfg.GetKeyFile())
	if err != nil {
		return nil, fmt.Errorf("loading certificate %s with key %s: %w", cfg.GetCertFile(), cfg.GetKeyFile(), err)
	}
	config := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2", "http/1.1"},
		Certificates: []tls.Certificate{pair},
	}
	if cfg.GetClientCaFile() == "" {
		return config, nil
	}
	config.ClientCAs, err = readAuthorities(cfg.GetClientCaFile())
	if err != nil {
		return nil, err
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	if tokens {
		config.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return config, nil
}

// ClientTLS is the TLS configuration of a client as its files are now.
// ClientCredentials keeps up with them.
func ClientTLS(cfg *configv1.ClientTLS) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cfg.GetServerName()}
	if cfg.GetCaFile() != "" {
		roots, err := readAuthorities(cfg.GetCaFile())
		if err != nil {
			return nil, err
		}
		config.RootCAs = roots
	}
	if (cfg.GetCertFile() == "") != (cfg.GetKeyFile() == "") {
		return nil, fmt.Errorf("a client certificate needs both cert_file and key_file; cert_file is %q, key_file is %q",
			cfg.GetCertFile(), cfg.GetKeyFile())
	}
	if cfg.GetCertFile() != "" {
		pair, err := tls.LoadX509KeyPair(cfg.GetCertFile(), cfg.GetKeyFile())
		if err != nil {
			return nil, fmt.Errorf("loading certificate %s with key %s: %w", cfg.GetCertFile(), cfg.GetKeyFile(), err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// ClientCredentials are the gRPC credentials of a client, whose files are read
// again when they change: each new connection uses what they hold then.
func ClientCredentials(cfg *configv1.ClientTLS, log *slog.Logger) (credentials.TransportCredentials, error) {
	paths := present(cfg.GetCaFile(), cfg.GetCertFile(), cfg.GetKeyFile())
	current, err := newReloaded("certificates", paths, log, func() (credentials.TransportCredentials, error) {
		config, err := ClientTLS(cfg)
		if err != nil {
			return nil, err
		}
		return credentials.NewTLS(config), nil
	})
	if err != nil {
		return nil, err
	}
	return &clientCredentials{TransportCredentials: current.get(), current: current}, nil
}

// clientCredentials shakes hands with the credentials of the moment.
type clientCredentials struct {
	credentials.TransportCredentials
	current *reloaded[credentials.TransportCredentials]
}

func (c *clientCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.current.get().ClientHandshake(ctx, authority, conn)
}

func (c *clientCredentials) Clone() credentials.TransportCredentials {
	return &clientCredentials{TransportCredentials: c.TransportCredentials.Clone(), current: c.current}
}

func readAuthorities(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading certificate authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", path)
	}
	return pool, nil
}

func present(paths ...string) []string {
	var kept []string
	for _, path := range paths {
		if path != "" {
			kept = append(kept, path)
		}
	}
	return kept
}
