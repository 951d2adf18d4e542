package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"
)

type tlsFiles struct{ ca, cert, key, serverName string }

// config reads the files once, so that a wrong one is an error now and not of
// the first call.
func (f *tlsFiles) config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.serverName}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("reading certificate authorities: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", f.ca)
		}
	}
	if (f.cert == "") != (f.key == "") {
		return nil, errors.New("a client certificate needs both its file and that of its key")
	}
	if f.cert != "" {
		if _, err := f.pair(nil); err != nil {
			return nil, err
		}
		config.GetClientCertificate = f.pair
	}
	return config, nil
}

// pair reads the caller's certificate. When it does not fit its key, one of the two was just
// renewed, and the other is about to be.
func (f *tlsFiles) pair(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	ctx := context.Background()
	if asked != nil {
		ctx = asked.Context()
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	for try := 1; err != nil && try < 4; try++ {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
		pair, err = tls.LoadX509KeyPair(f.cert, f.key)
	}
	if err != nil {
		return nil, fmt.Errorf("loading certificate %s with key %s: %w", f.cert, f.key, err)
	}
	return &pair, nil
}
