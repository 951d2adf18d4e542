package debug

import (
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
)

const day = 24 * time.Hour

// made is a certificate that holds from and to so long from now, in a file, with what serves it.
func made(t *testing.T, dir, name string, from, to time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, name+".crt"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve shows a certificate to whoever connects, as buildkitd with client certificates does.
func serve(t *testing.T, cert tls.Certificate) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func(conn net.Conn) {
				_ = conn.(*tls.Conn).Handshake() //nolint:forcetypeassert // of a TLS listener
				_ = conn.Close()
			}(conn)
		}
	}()
	return l.Addr().String()
}

func findingsOf(t *testing.T, o *options) string {
	t.Helper()
	var all []string
	for _, f := range o.certificateCheck(t.Context()) {
		all = append(all, string(f.State)+" "+f.Message+" | "+f.Remedy)
	}
	return strings.Join(all, "\n")
}

// A renewed certificate that is not served yet needs a restart of who serves the old one.
func TestCertificates_NameWhoMustBeRestarted(t *testing.T) {
	dir := t.TempDir()
	old := made(t, dir, "buildkitd", -85*day, 5*day)
	daemon := serve(t, old)
	o := &options{certsDir: dir, daemon: "tcp://" + daemon}
	o.conn.Address = "unix:///none"
	got := findingsOf(t, o)
	if !strings.Contains(got, "buildkitd.crt ends in") || !strings.Contains(got, "buildkitd at "+daemon+" serves ends in") || !strings.Contains(got, "then sudo systemctl restart buildkit") {
		t.Errorf("before it is renewed:\n%s", got)
	}
	made(t, dir, "buildkitd", -time.Minute, 90*day)
	got = findingsOf(t, o)
	if strings.Contains(got, "rotate") || !strings.Contains(got, "warn buildkitd at "+daemon+" serves a certificate of before") || !strings.Contains(got, "| sudo systemctl restart buildkit:") {
		t.Errorf("once it is renewed:\n%s", got)
	}
	o.daemon, o.registry = "unix:///run/buildkit/buildkitd.sock", serve(t, made(t, t.TempDir(), "registry", -90*day, -day))
	made(t, dir, "registry", -time.Minute, 90*day)
	if got := findingsOf(t, o); !strings.HasPrefix(got, "fail the registry at "+o.registry) || !strings.Contains(got, "restart kiln-registry") {
		t.Errorf("of a registry whose certificate has ended:\n%s", got)
	}
	o.registry = serve(t, made(t, dir, "registry", -time.Minute, 90*day))
	if got := findingsOf(t, o); !strings.HasPrefix(got, "ok ") {
		t.Errorf("once it was restarted:\n%s", got)
	}
}

// A certificate of a short life is near its end when most of that is over, and not from its first day.
func TestCertificates_OfAShortLife(t *testing.T) {
	for name, c := range map[string]struct {
		from, to time.Duration
		want     string
	}{
		"a week, new":         {-time.Minute, 7 * day, "ok"},
		"a week, near to end": {-5 * day, 2 * day, "warn"},
		"a day, new":          {-time.Minute, day, "ok"},
		"90 days, 29 left":    {-61 * day, 29 * day, "warn"},
		"a year, 60 left":     {-305 * day, 60 * day, "ok"},
		"over":                {-7 * day, -time.Hour, "fail"},
	} {
		dir := t.TempDir()
		made(t, dir, "x", c.from, c.to)
		o := &options{certsDir: dir}
		o.conn.Address = "unix:///none"
		if got := findingsOf(t, o); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %s", name, got)
		}
	}
}
