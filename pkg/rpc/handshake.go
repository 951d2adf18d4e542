package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc/credentials"
)

// handshakes are the TLS credentials of a server. They accept a client that does not negotiate a
// protocol by ALPN, as buildkitd does: buildx's remote driver negotiates none, and gRPC's own
// credentials refuse that. A handshake that fails is logged and counted; gRPC says nothing of it.
type handshakes struct {
	config  *tls.Config
	log     *slog.Logger
	refused metric.Int64Counter

	mu         sync.Mutex
	logged     time.Time // when a refusal was logged last
	suppressed int       // refusals since
}

var _ credentials.TransportCredentials = (*handshakes)(nil)

// logRefusals is the shortest time between two lines of the log about refused handshakes: anybody
// who reaches the port can cause them.
const logRefusals = 10 * time.Second

func newHandshakes(config *tls.Config, log *slog.Logger, provider metric.MeterProvider) (*handshakes, error) {
	refused, err := provider.Meter("github.com/kilnbuild/kiln/pkg/rpc").Int64Counter("kiln.security.handshakes.refused",
		metric.WithUnit("{connection}"), metric.WithDescription("TLS connections to the gRPC port that were refused, by reason"))
	if err != nil {
		return nil, fmt.Errorf("making a metric: %w", err)
	}
	return &handshakes{config: config, log: log, refused: refused}, nil
}

// ServerHandshake implements credentials.TransportCredentials. gRPC has set the deadline of raw.
func (h *handshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn := tls.Server(raw, h.config)
	err := conn.Handshake()
	state := conn.ConnectionState()
	if p := state.NegotiatedProtocol; err == nil && p != "" && p != "h2" {
		err = fmt.Errorf("%w: %q", errNotHTTP2, p)
	}
	if err != nil {
		h.refuse(raw.RemoteAddr(), err)
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, credentials.TLSInfo{
		State:          state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

var errNotHTTP2 = errors.New("the client speaks another protocol than HTTP/2")

// refuse logs and counts a handshake that failed.
func (h *handshakes) refuse(peer net.Addr, err error) {
	ctx := context.Background()
	reason := refusalOf(err)
	h.refused.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reason)))
	if reason == refusedClosed {
		return // a port scan, or the check of a load balancer
	}
	h.mu.Lock()
	suppressed := h.suppressed
	quiet := time.Since(h.logged) < logRefusals
	if quiet {
		h.suppressed++
	} else {
		h.logged, h.suppressed = time.Now(), 0
	}
	h.mu.Unlock()
	if !quiet {
		h.log.WarnContext(ctx, "TLS handshake refused", "peer", peer.String(), "reason", reason, "error", err, "not_logged_before", suppressed)
	}
}

// The reasons of refused handshakes, which are a label of the metric.
const (
	refusedClosed      = "closed"            // the client closed the connection
	refusedTimeout     = "timeout"           // the client did not go on
	refusedPlainText   = "plain_text"        // the client does not speak TLS
	refusedCertificate = "certificate"       // the client has no certificate, or one that is not accepted
	refusedByClient    = "refused_by_client" // the client does not accept the server's certificate, or TLS version
	refusedProtocol    = "protocol"          // no common TLS version, cipher or protocol
)

// refusalOf returns the reason of a failed handshake.
func refusalOf(err error) string {
	var (
		record      tls.RecordHeaderError
		certificate *tls.CertificateVerificationError
		invalid     x509.CertificateInvalidError
		unknown     x509.UnknownAuthorityError
		remote      *net.OpError
	)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, net.ErrClosed):
		return refusedClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refusedTimeout
	case errors.As(err, &record):
		return refusedPlainText
	case errors.As(err, &certificate), errors.As(err, &invalid), errors.As(err, &unknown),
		strings.Contains(err.Error(), "client didn't provide a certificate"):
		return refusedCertificate
	case errors.As(err, &remote) && remote.Op == "remote error":
		return refusedByClient
	default:
		return refusedProtocol
	}
}

// ClientHandshake implements credentials.TransportCredentials. A server makes none.
func (h *handshakes) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are the credentials of a server")
}

// Info implements credentials.TransportCredentials.
func (h *handshakes) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials. All connections share the counts.
func (h *handshakes) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (h *handshakes) OverrideServerName(string) error { return nil }
