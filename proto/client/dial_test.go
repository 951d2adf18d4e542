package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Plain text stays on the host, unless the caller says otherwise.
func TestDialPlainText(t *testing.T) {
	for target, refused := range map[string]bool{
		"127.0.0.1:50051": false, "tcp://127.0.0.1:50051": false, "localhost:50051": false, "[::1]:50051": false, "unix:///run/kiln.sock": false,
		"builder.example.org:50051": true, "10.0.0.7:50051": true, "tcp://10.0.0.7:50051": true, "dns:///builder:50051": true,
		"localhost.example.org:1": true, "127.0.0.1.example.org:1": true,
	} {
		c, err := client.Dial(target)
		if refused != (err != nil) || (refused && !strings.Contains(err.Error(), "WithTLS")) {
			t.Errorf("%s: %v", target, err)
		}
		if c != nil {
			_ = c.Close()
		}
		if c, err = client.Dial(target, client.WithInsecure()); err != nil {
			t.Errorf("%s: %v", target, err)
			continue
		}
		_ = c.Close()
	}
}

// certificate writes a certificate for localhost and its key, signed by parent
// or, when that is nil, by itself.
func certificate(t *testing.T, dir, name string, parent *tls.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: parent == nil, BasicConstraintsValid: true, DNSNames: []string{"kiln.test"},
	}
	signer, signerKey := template, any(key)
	if parent != nil {
		signer, signerKey = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, &key.PublicKey, signerKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name+file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// A client shows its certificate, checks the builder's, and reads its own again
// for each connection.
func TestDialTLS(t *testing.T) {
	dir := t.TempDir()
	ca := certificate(t, dir, "ca", nil)
	server := certificate(t, dir, "server", ca)
	certificate(t, dir, "me", ca)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	var caller string
	s := &script{startBuild: func(ctx context.Context, req *builderv1.StartBuildRequest) (*builderv1.StartBuildResponse, error) {
		p, _ := peer.FromContext(ctx)
		caller = p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].Subject.CommonName
		return record("b1")(ctx, req)
	}}
	l := serve(t, s, grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{*server}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	})))
	file := func(name string) string { return filepath.Join(dir, name) }
	c := connect(t, l.Addr().String(), client.WithTLS(file("ca.crt"), file("me.crt"), file("me.key"), "kiln.test"))
	if _, err := c.Start(t.Context(), nil); err != nil || caller != "me" {
		t.Fatalf("caller %q, %v", caller, err)
	}
	certificate(t, dir, "renewed", ca)
	for _, kind := range []string{".crt", ".key"} {
		if err := os.Rename(file("renewed"+kind), file("me"+kind)); err != nil {
			t.Fatal(err)
		}
	}
	l.cut()
	if _, err := c.Start(t.Context(), nil); err != nil || caller != "renewed" {
		t.Errorf("after the renewal: caller %q, %v", caller, err)
	}
	wrong := connect(t, l.Addr().String(), client.WithTLS(file("ca.crt"), file("me.crt"), file("me.key"), "other.test"), client.WithPatience(0))
	if _, err := wrong.Start(t.Context(), nil); err == nil {
		t.Error("another name than the certificate's is accepted")
	}
	for name, opt := range map[string]client.Option{
		"no such file":    client.WithTLS(file("none"), "", "", ""),
		"no certificate":  client.WithTLS(file("me.key"), "", "", ""),
		"no key":          client.WithTLS("", file("me.crt"), "", ""),
		"a key not of it": client.WithTLS("", file("me.crt"), file("ca.key"), ""),
	} {
		if c, err := client.Dial("127.0.0.1:1", opt); err == nil {
			t.Errorf("%s: no error", name)
			_ = c.Close()
		}
	}
}

// A unix socket needs no TLS.
func TestDialUnix(t *testing.T) {
	dir, err := os.MkdirTemp("", "kiln") //nolint:usetesting // t.TempDir is too long for a socket's path.
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	builderv1.RegisterBuilderServiceServer(server, &script{startBuild: record("b1")})
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	if rec, err := connect(t, "unix://"+path).Start(t.Context(), nil); err != nil || rec.GetId() != "b1" {
		t.Errorf("%v, %v", rec, err)
	}
}
