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

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
)

// serviceChecks ask each of Kiln's services for its health.
func (o *options) serviceChecks(ctx context.Context) (all []Finding) {
	for _, service := range o.parts() {
		f := Finding{State: OK, Message: fmt.Sprintf("the %s at %s serves", service.name, service.conn.Address)}
		if err := healthOf(ctx, service.conn); err != nil {
			f.State, f.Message = Fail, fmt.Sprintf("the %s at %s is not well", service.name, service.conn.Address)
			f.Evidence = []string{err.Error()}
			f.Remedy = fmt.Sprintf("sudo systemctl restart %[1]s, and see journalctl -u %[1]s; on one machine, kiln up", service.unit)
		}
		all = append(all, f)
	}
	return all
}

func healthOf(ctx context.Context, flags *connect.Flags) error {
	conn, err := flags.Connect()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is left to lose
	res, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	switch {
	case status.Code(err) == codes.PermissionDenied || status.Code(err) == codes.Unauthenticated:
		return nil // it answers, and not to everybody
	case err != nil:
		return flags.Explain(err)
	case res.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return fmt.Errorf("its health is %s: its dependencies do not answer", res.GetStatus())
	}
	return nil
}

// soon is when the end of a certificate is near.
const soon = 30 * 24 * time.Hour

// certificateCheck looks at the ends of certificates: those that are served, and those in
// files.
func (o *options) certificateCheck(ctx context.Context) []Finding {
	var all []Finding
	judge := func(where string, end time.Time, remedy string) {
		switch left := time.Until(end); {
		case left < 0:
			all = append(all, Finding{State: Fail, Message: where + " has ended", Evidence: []string{"not after " + end.UTC().Format(time.RFC3339)}, Remedy: remedy})
		case left < soon:
			all = append(all, Finding{State: Warn, Message: fmt.Sprintf("%s ends in %d days", where, int(left.Hours()/24)), Evidence: []string{"not after " + end.UTC().Format(time.RFC3339)}, Remedy: remedy})
		}
	}
	looked := 0
	files, _ := filepath.Glob(filepath.Join(o.certsDir, "*.crt"))
	for _, file := range append(files, o.conn.Cert, o.conn.CA) {
		certs := certificatesIn(file)
		looked += len(certs)
		for _, cert := range certs {
			judge(file, cert.NotAfter, "kiln certs rotate --dir "+o.certsDir)
		}
	}
	for _, address := range []string{o.conn.Address, o.cacheManager, o.janitor, o.registry} {
		if end, ok := served(ctx, address); ok {
			looked++
			judge("the certificate that "+address+" shows", end, "kiln certs rotate --dir "+o.certsDir+", where it runs")
		}
	}
	if len(all) > 0 {
		return all
	}
	if looked == 0 {
		return unknown("there are no certificates here: all connections are local, or in plain text")
	}
	return ok("%d certificates, none of which ends within 30 days", looked)
}

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

// served is when the certificate ends that a server shows, whoever has signed it.
func served(ctx context.Context, address string) (end time.Time, ok bool) {
	if address == "" || strings.HasPrefix(address, "unix:") {
		return end, false
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var seen []*x509.Certificate
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // Nothing is sent; only its end is looked at.
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
		return end, false
	}
	return seen[0].NotAfter, true
}
