// Package rpc is the gRPC server and client that all services share.
//
// A server has health, reflection, traces, metrics, recovery from panics,
// identities and access rules, validation of requests, bounds on time and size,
// and an end that lets calls finish. Services add only what they do.
package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// ServerOptions says what kind of server to make.
type ServerOptions struct {
	// Name of the service in errors, such as "kiln-builder".
	Name string
	// Config is the addresses, certificates, limits and access rules. Limits
	// that are not set have the defaults that the message states.
	Config *configv1.ServerConfig
	// Telemetry takes traces, metrics and logs. Nil: nothing does.
	Telemetry *telemetry.Telemetry
	// Authorize decides on each call. Nil: by Config.access.
	Authorize auth.Authorizer
	// GRPC is further options, such as grpc.UnknownServiceHandler and
	// grpc.ForceServerCodecV2. Calls of services outside the kiln packages are
	// authorized and logged like all others, but their messages are neither
	// validated nor is their time bounded.
	GRPC []grpc.ServerOption
}

// Server is a gRPC server with an HTTP server beside it.
type Server struct {
	name     string
	log      *slog.Logger
	panicked lifecycle.Reporter
	limits   limits
	grpc     *grpc.Server
	mux      *http.ServeMux
	http     *http.Server
	listener net.Listener
	httpSide net.Listener // Nil: off.
	ready    *readiness
	access   *access
	audit    *audit        // nil before it could be opened
	drained  chan struct{} // Closed when the gRPC server has ended.
}

// NewServer makes a server and binds its addresses. Close it if Run is never
// called. Register services and dependencies before Run.
func NewServer(opts ServerOptions) (_ *Server, err error) {
	tel := opts.Telemetry
	if tel == nil {
		tel = telemetry.Discard()
	}
	s := &Server{
		name:     opts.Name,
		log:      tel.Logger,
		panicked: tel.Panicked,
		limits:   limitsOf(opts.Config.GetLimits()),
		mux:      http.NewServeMux(),
		ready:    newReadiness(tel.Logger),
		drained:  make(chan struct{}),
	}
	guard, err := newGuard(opts, s, tel)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.grpc = grpc.NewServer(append(serverOptions(s.limits, tel, guard), opts.GRPC...)...)
	healthgrpc.RegisterHealthServer(s.grpc, s.ready.health)
	reflection.Register(s.grpc)
	s.http = newHTTPServer(s.mux, tel.Logger, tel.Panicked)
	s.mux.Handle("GET /metrics", tel.Metrics)
	s.mux.HandleFunc("GET /healthz", alive)
	s.mux.HandleFunc("GET /readyz", s.ready.answer)
	return s, nil
}

// newGuard reads what the configuration says of callers, and binds the addresses.
func newGuard(opts ServerOptions, s *Server, tel *telemetry.Telemetry) (*guard, error) {
	if err := checkExposure(opts.Config); err != nil {
		return nil, err
	}
	access, err := newAccess(opts.Config, opts.Authorize, tel.Logger)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(access.measure(tel.Meter), s.ready.measure(tel.Meter)); err != nil {
		return nil, err
	}
	if err := s.bind(opts.Config, access.tls()); err != nil {
		return nil, err
	}
	s.access = access
	if s.audit, err = newAudit(opts.Name, opts.Config, tel); err != nil {
		return nil, fault.Wrap(err, fault.InvalidArgument, "INVALID_FIELD", "the audit log cannot be written", "name a file with server.audit_file that the server's user may write")
	}
	g := &guard{log: tel.Logger, panicked: tel.Panicked, access: access, audit: s.audit, limits: s.limits, draining: s.ready.draining}
	if g.creds, err = access.credentials(tel); err != nil {
		return nil, err
	}
	return g, nil
}

// GrantOf returns what the rules allow an identity that makes one of some calls now,
// as its own call would: for work that outlives the call which asked for it.
func (s *Server) GrantOf(ctx context.Context, identity string, fullMethods ...string) auth.Grant {
	var why error
	for _, method := range fullMethods {
		grant, err := s.access.authorize(ctx, method, auth.Identity{Name: identity})
		if err == nil {
			return grant
		}
		why = err
	}
	return auth.Refused(why)
}

// RegisterService adds a service, and an entry for it in the health service.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	s.grpc.RegisterService(desc, impl)
	s.ready.add(desc.ServiceName)
	warm(desc.ServiceName)
}

// Depend adds a dependency: check is called now and then, bounded to
// checkTimeout, and more often while it fails. Health is NOT_SERVING until all
// dependencies have answered well once, and mirrors them after that.
func (s *Server) Depend(name string, every time.Duration, check func(context.Context) error) {
	s.ready.depend(name, every, check)
}

// HandleHTTP adds a handler to the HTTP server. Patterns are those of
// http.ServeMux. The handler decides itself whom it answers.
func (s *Server) HandleHTTP(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// Addr is the address of the gRPC server as it was bound: "127.0.0.1:50051", or
// "unix:///path".
func (s *Server) Addr() string { return address(s.listener) }

// HTTPAddr is the address of the HTTP server as it was bound. Empty: it is off.
func (s *Server) HTTPAddr() string { return address(s.httpSide) }

// Run serves until ctx ends. Then health turns NOT_SERVING, calls under way may
// finish within limits.shutdown_grace, and what is left is cut off. Run returns
// nil when ctx ended it.
func (s *Server) Run(ctx context.Context) error {
	tasks := append(s.ready.tasks(), lifecycle.Task{Name: s.name + " gRPC server", Run: s.serve})
	if s.httpSide != nil {
		tasks = append(tasks, lifecycle.Task{Name: s.name + " HTTP server", Run: s.serveHTTP})
	}
	ctx = lifecycle.WithReporter(ctx, s.panicked)
	s.log.InfoContext(ctx, "serving", "grpc", s.Addr(), "http", s.HTTPAddr())
	err := lifecycle.Run(ctx, tasks...)
	s.log.InfoContext(ctx, "stopped")
	return errors.Join(err, s.audit.close())
}

// Close gives the addresses back. It is for a server that never ran.
func (s *Server) Close() error {
	failures := []error{s.audit.close()}
	for _, l := range []net.Listener{s.listener, s.httpSide} {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

func (s *Server) serve(ctx context.Context) error {
	defer close(s.drained)
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(s.listener) }()
	select {
	case err := <-served:
		s.ready.drain()
		s.grpc.Stop()
		return err
	case <-ctx.Done():
		s.ready.drain()
		s.stop(ctx)
		return nil
	}
}

// stopTimeout is how long handlers have to return after they were cut off.
const stopTimeout = 5 * time.Second

// stop lets calls finish within the grace and then cuts them off.
func (s *Server) stop(ctx context.Context) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.grpc.GracefulStop()
	}()
	if waited(ended, s.limits.shutdownGrace) {
		return
	}
	s.log.WarnContext(ctx, "calls are still under way after the grace; cutting them off", "grace", s.limits.shutdownGrace)
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		s.grpc.Stop()
	}()
	if !waited(cut, stopTimeout) {
		s.log.ErrorContext(ctx, "handlers have not returned though their calls were cut off", "waited", stopTimeout)
	}
}

// waited says whether done was closed within the time.
func waited(done <-chan struct{}, within time.Duration) bool {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// newHealth is a health service that says NOT_SERVING until told otherwise.
func newHealth() *health.Server {
	h := health.NewServer()
	h.SetServingStatus("", healthgrpc.HealthCheckResponse_NOT_SERVING)
	return h
}
