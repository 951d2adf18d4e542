package debug

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// soon is when the end of a certificate is near, if two thirds of its life are over, too: one that
// holds for a week is renewed each week.
const soon = 30 * 24 * time.Hour

func near(cert *x509.Certificate) bool {
	left := time.Until(cert.NotAfter)
	return left < soon && left < cert.NotAfter.Sub(cert.NotBefore)/3
}

// server is who shows a certificate.
type server struct {
	name, unit, address string
	reads               bool // it reads a renewed certificate by itself
}

// servers are those that the profile or flags name. What listens on a socket shows no certificate.
func (o *options) servers() (all []server) {
	for _, p := range o.parts() {
		all = append(all, server{"the " + p.name, p.unit, p.conn.Address, true})
	}
	all = append(all, server{"the registry", "kiln-registry", o.registry, false})
	if address, tcp := strings.CutPrefix(o.daemon, "tcp://"); tcp {
		all = append(all, server{"buildkitd", "buildkit", address, false})
	}
	return slices.DeleteFunc(all, func(s server) bool { return s.address == "" || strings.HasPrefix(s.address, "unix:") })
}

// certificateCheck looks at the ends of certificates: those in files, and those that are served. One that
// was renewed and is not served yet needs a restart, and not another renewal.
func (o *options) certificateCheck(ctx context.Context) []Finding {
	files := o.certificateFiles()
	looked := 0
	var all []Finding
	for _, file := range files {
		looked += len(file.certs)
		all = append(all, o.judgeFile(file)...)
	}
	for _, s := range o.servers() {
		cert := servedBy(ctx, s.address)
		if cert == nil {
			continue
		}
		looked++
		all = append(all, o.judgeServed(s, cert, files)...)
	}
	if len(all) > 0 {
		return all
	}
	if looked == 0 {
		return unknown("there are no certificates here: all connections are local, or in plain text")
	}
	return ok("%d certificates, none of which ends soon", looked)
}

// certificateFile is a file with certificates.
type certificateFile struct {
	path  string
	certs []*x509.Certificate
}

func (o *options) certificateFiles() (all []certificateFile) {
	paths, _ := filepath.Glob(filepath.Join(o.certsDir, "*.crt"))
	for _, path := range append(paths, o.conn.Cert, o.conn.CA, o.registryCA) {
		if slices.ContainsFunc(all, func(f certificateFile) bool { return f.path == path }) {
			continue
		}
		if certs := certificatesIn(path); len(certs) > 0 {
			all = append(all, certificateFile{path, certs})
		}
	}
	return all
}

// judgeFile looks at the first certificate of a file: those that follow an authority are of before it was
// renewed, and those that follow another certificate signed it.
func (o *options) judgeFile(file certificateFile) []Finding {
	remedy := "kiln certs rotate --dir " + o.certsDir
	switch cert := file.certs[0]; {
	case filepath.Dir(file.path) != filepath.Clean(o.certsDir):
		remedy = "renew it where it is from, and put it there"
	case cert.IsCA:
		remedy = "kiln certs rotate --ca --dir " + o.certsDir + ", and bring ca.crt to all hosts"
	}
	return judge(file.path, file.certs[0], remedy)
}

// judgeServed compares what is served with the files.
func (o *options) judgeServed(s server, cert *x509.Certificate, files []certificateFile) []Finding {
	restart := fmt.Sprintf("sudo systemctl restart %s: it reads its certificate at its start only", s.unit)
	if s.reads {
		restart = fmt.Sprintf("see journalctl -u %[1]s: it reads a renewed certificate within a second, unless the pair does not fit; or sudo systemctl restart %[1]s", s.unit)
	}
	for _, file := range files {
		if renewed := file.certs[0]; renews(renewed, cert) {
			f := Finding{
				State: Warn, Message: fmt.Sprintf("%s at %s serves a certificate of before %s was renewed", s.name, s.address, file.path), Remedy: restart,
				Evidence: []string{"served: not after " + stamp(cert.NotAfter), "renewed: not after " + stamp(renewed.NotAfter)},
			}
			if time.Now().After(cert.NotAfter) {
				f.State = Fail
			}
			return []Finding{f}
		}
	}
	remedy := "kiln certs rotate --dir " + o.certsDir + ", where it runs"
	if !s.reads {
		remedy += "; then " + restart
	}
	return judge(fmt.Sprintf("the certificate that %s at %s serves", s.name, s.address), cert, remedy)
}

// renews reports whether a certificate was made in the place of another one: for the same subject and the
// same names, later.
func renews(renewed, cert *x509.Certificate) bool {
	return renewed.NotBefore.After(cert.NotBefore) && renewed.Subject.String() == cert.Subject.String() &&
		slices.Equal(namesIn(renewed), namesIn(cert))
}

func namesIn(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	for _, uri := range cert.URIs {
		names = append(names, uri.String())
	}
	slices.Sort(names)
	return names
}

// judge is a finding about a certificate that has ended, or ends soon.
func judge(where string, cert *x509.Certificate, remedy string) []Finding {
	left, evidence := time.Until(cert.NotAfter), []string{"not after " + stamp(cert.NotAfter)}
	switch {
	case left < 0:
		return []Finding{{State: Fail, Message: where + " has ended", Evidence: evidence, Remedy: remedy}}
	case near(cert):
		return []Finding{{State: Warn, Message: fmt.Sprintf("%s ends in %d days", where, int(left.Hours()/24)), Evidence: evidence, Remedy: remedy}}
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func certificatesIn(file string) (all []*x509.Certificate) {
	rest, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return all
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			all = append(all, cert)
		}
	}
}

// servedBy is the certificate that a server shows, whoever has signed it; nil when it shows none.
func servedBy(ctx context.Context, address string) *x509.Certificate {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var seen []*x509.Certificate
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // Nothing is sent; only the certificate is looked at.
		NextProtos:         []string{"h2", "http/1.1"},
		VerifyConnection: func(state tls.ConnectionState) error {
			seen = slices.Clone(state.PeerCertificates)
			return nil
		},
	}}
	if conn, err := dialer.DialContext(ctx, "tcp", address); err == nil {
		_ = conn.Close()
	}
	if len(seen) == 0 {
		return nil
	}
	return seen[0]
}
