package rpc

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// newHTTPServer is a server whose every wait is bounded, and whose panics go to report.
func newHTTPServer(handler http.Handler, log *slog.Logger, report lifecycle.Reporter) *http.Server {
	return &http.Server{
		Handler: lifecycle.Recovering(handler),
		BaseContext: func(net.Listener) context.Context {
			return lifecycle.WithReporter(context.Background(), report)
		},
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// serveHTTP serves until ctx ends and the gRPC server has ended, so that
// /readyz can say that the service is going.
func (s *Server) serveHTTP(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.httpSide) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	<-s.drained // Bounded: see Server.stop.
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := s.http.Shutdown(bounded); err != nil {
		s.log.WarnContext(ctx, "HTTP requests were cut off", "error", err)
		return s.http.Close()
	}
	return nil
}

// forProbes is the server's TLS for HTTP, where callers need no certificate:
// probes and scrapers have none.
func forProbes(config *tls.Config) *tls.Config {
	open := config.Clone()
	current := config.GetConfigForClient
	open.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := current(hello)
		if err != nil {
			return nil, err
		}
		c = c.Clone()
		c.NextProtos = []string{"http/1.1"}
		if c.ClientAuth == tls.RequireAndVerifyClientCert {
			c.ClientAuth = tls.VerifyClientCertIfGiven
		}
		return c, nil
	}
	return open
}

// alive answers /healthz: the process serves.
func alive(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }
