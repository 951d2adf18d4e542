package rpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"
	reflectiongrpc "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

func limitsConfig() *configv1.LimitsConfig {
	return &configv1.LimitsConfig{ShutdownGrace: durationpb.New(5 * time.Second)}
}

func (r *rig) health(t *testing.T, service string) healthgrpc.HealthCheckResponse_ServingStatus {
	t.Helper()
	resp, err := healthgrpc.NewHealthClient(r.conn).Check(within(t), &healthgrpc.HealthCheckRequest{Service: service})
	if err != nil {
		t.Fatalf("health of %q: %v", service, err)
	}
	return resp.GetStatus()
}

func (r *rig) httpGet(t *testing.T, path string) (int, string) {
	t.Helper()
	client := &http.Client{Timeout: soon, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + r.server.HTTPAddr() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestHealthMirrorsDependencies(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	answers := make(chan struct{})
	r := start(t, rigOptions{depend: func(s *rpc.Server) {
		s.Depend("registry", 10*time.Millisecond, func(context.Context) error { return nil })
		s.Depend("daemon", 10*time.Millisecond, func(ctx context.Context) error {
			select {
			case <-answers:
			case <-ctx.Done():
				return ctx.Err()
			}
			if down.Load() {
				return errors.New("connection refused")
			}
			return nil
		})
	}})
	const service = "kiln.builder.v1.BuilderService"
	is := func(want healthgrpc.HealthCheckResponse_ServingStatus) func() bool {
		return func() bool { return r.health(t, "") == want && r.health(t, service) == want }
	}
	if !is(healthgrpc.HealthCheckResponse_NOT_SERVING)() {
		t.Error("health is not NOT_SERVING before all dependencies have answered")
	}
	if code, body := r.httpGet(t, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "daemon: not checked yet") {
		t.Errorf("/readyz at the start: %d %q", code, body)
	}
	if code, _ := r.httpGet(t, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz at the start: %d", code)
	}
	close(answers)
	testkit.Eventually(t, soon, func() bool { return strings.Contains(r.log.String(), "dependency does not answer") })
	if code, body := r.httpGet(t, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "daemon: connection refused") || !strings.Contains(body, "registry: ok") {
		t.Errorf("/readyz while down: %d %q", code, body)
	}
	down.Store(false)
	testkit.Eventually(t, soon, is(healthgrpc.HealthCheckResponse_SERVING))
	if code, body := r.httpGet(t, "/readyz"); code != http.StatusOK || !strings.HasPrefix(body, "ready\n") {
		t.Errorf("/readyz while up: %d %q", code, body)
	}
	down.Store(true)
	testkit.Eventually(t, soon, is(healthgrpc.HealthCheckResponse_NOT_SERVING))
	down.Store(false)
	testkit.Eventually(t, soon, is(healthgrpc.HealthCheckResponse_SERVING))
}

func TestDependencyThatPanicsOrHangsIsDown(t *testing.T) {
	r := start(t, rigOptions{depend: func(s *rpc.Server) {
		s.Depend("broken", 10*time.Millisecond, func(context.Context) error { panic("broken check") })
		// Heeds nothing until the test ends, like a read from a hung disk.
		s.Depend("hung", 10*time.Millisecond, func(context.Context) error { <-t.Context().Done(); return nil })
	}})
	testkit.Eventually(t, soon, func() bool {
		_, body := r.httpGet(t, "/readyz")
		return strings.Contains(body, "broken: panic: broken check") && strings.Contains(body, "hung: no answer within 5s")
	})
}

func TestGracefulStopLetsCallsFinish(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	config := loopback()
	config.Limits = limitsConfig()
	r := start(t, rigOptions{config: config, impl: &builds{
		get: func(context.Context, *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
			close(entered)
			<-leave
			return &builderv1.GetBuildResponse{}, nil
		},
	}})
	watch, err := healthgrpc.NewHealthClient(r.conn).Watch(within(t), &healthgrpc.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := watch.Recv(); err != nil || first.GetStatus() != healthgrpc.HealthCheckResponse_SERVING {
		t.Fatalf("first health: %v %v", first, err)
	}
	answered := make(chan error, 1)
	ctx := within(t)
	go func() {
		_, err := r.client.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: "b"})
		answered <- err
	}()
	<-entered
	r.stop()
	testkit.Eventually(t, soon, func() bool {
		code, body := r.httpGet(t, "/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "shutting down")
	})
	// Another connection is refused by now.
	testkit.Eventually(t, soon, func() bool {
		conn, err := net.DialTimeout("tcp", r.server.Addr(), time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	close(leave)
	if err := <-answered; err != nil {
		t.Errorf("the call under way failed: %v", err)
	}
	begun := time.Now()
	if err := r.wait(t); err != nil {
		t.Errorf("Run: %v", err)
	}
	// The Watch call, which nobody ends, must not use the grace up.
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("the stop took %s after the last call", took)
	}
}

func TestStopIsCapped(t *testing.T) {
	entered := make(chan struct{})
	handlerEnded := make(chan struct{})
	config := loopback()
	config.Limits = &configv1.LimitsConfig{ShutdownGrace: durationpb.New(200 * time.Millisecond)}
	r := start(t, rigOptions{config: config, impl: &builds{
		build: func(_ *builderv1.BuildRequest, stream grpc.ServerStreamingServer[builderv1.BuildResponse]) error {
			defer close(handlerEnded)
			close(entered)
			<-stream.Context().Done()
			time.Sleep(300 * time.Millisecond) // It puts its things in order.
			return stream.Context().Err()
		},
	}})
	failed := make(chan error, 1)
	ctx := within(t)
	go func() { failed <- r.buildErr(ctx, inlineBuild(nil)) }()
	<-entered
	begun := time.Now()
	r.stop()
	if err := r.wait(t); err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(begun); took < 200*time.Millisecond || took > 3*time.Second {
		t.Errorf("the stop took %s with a grace of 200ms", took)
	}
	select {
	case <-handlerEnded:
	default:
		t.Error("Run returned before the handler")
	}
	if code := status.Code(<-failed); code != codes.Unavailable {
		t.Errorf("the call that was cut off got %s, want Unavailable", code)
	}
}

func TestReflectionListsServices(t *testing.T) {
	r := start(t, rigOptions{})
	stream, err := reflectiongrpc.NewServerReflectionClient(r.conn).ServerReflectionInfo(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectiongrpc.ServerReflectionRequest{MessageRequest: &reflectiongrpc.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range resp.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	if all := strings.Join(names, " "); !strings.Contains(all, "kiln.builder.v1.BuilderService") || !strings.Contains(all, "grpc.health.v1.Health") {
		t.Errorf("services: %s", all)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
}

func TestAddresses(t *testing.T) {
	socket := testkit.TempUnixSocket(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	for name, test := range map[string]struct {
		config *configv1.ServerConfig
		want   string // In the error; empty: no error.
	}{
		"loopback":            {config: &configv1.ServerConfig{Listen: "127.0.0.1:0"}},
		"loopback by name":    {config: &configv1.ServerConfig{Listen: "localhost:0", HttpListen: "off"}},
		"loopback IPv6":       {config: &configv1.ServerConfig{Listen: "[::1]:0"}},
		"unix":                {config: &configv1.ServerConfig{Listen: "unix://" + socket}},
		"insecure on purpose": {config: &configv1.ServerConfig{Listen: "0.0.0.0:0", HttpListen: ":0", Insecure: true}},
		"none":                {config: &configv1.ServerConfig{}, want: "server.listen: no address to listen on"},
		"all":                 {config: &configv1.ServerConfig{Listen: ":0"}, want: "server.insecure: true"},
		"all IPv4":            {config: &configv1.ServerConfig{Listen: "0.0.0.0:0"}, want: "server.listen: 0.0.0.0:0 can be reached by others"},
		"all IPv6":            {config: &configv1.ServerConfig{Listen: "[::]:0"}, want: "server.listen"},
		"some host":           {config: &configv1.ServerConfig{Listen: "build.example.org:50051"}, want: "server.listen"},
		"HTTP to all":         {config: &configv1.ServerConfig{Listen: "127.0.0.1:0", HttpListen: "0.0.0.0:0"}, want: "server.http_listen"},
		"no port":             {config: &configv1.ServerConfig{Listen: "127.0.0.1"}, want: "server.listen"},
		"taken": {
			config: &configv1.ServerConfig{Listen: taken.Addr().String()},
			want:   "server.listen: cannot listen on " + taken.Addr().String() + ": the address is in use by another process (stop that process, or choose another address with --set server.listen=…)",
		},
		"HTTP taken": {
			config: &configv1.ServerConfig{Listen: "127.0.0.1:0", HttpListen: taken.Addr().String()},
			want:   "--set server.http_listen=…",
		},
		"unix path too long": {config: &configv1.ServerConfig{Listen: "unix:///" + strings.Repeat("x", 120)}, want: "at most 107 bytes"},
		"unix path a file":   {config: &configv1.ServerConfig{Listen: "unix:///etc/passwd"}, want: "is no socket"},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.VerifyNoLeaks(t)
			server, err := rpc.NewServer(rpc.ServerOptions{Name: "test", Config: test.config})
			if err == nil {
				t.Cleanup(func() {
					if err := server.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
				})
			}
			switch {
			case test.want == "" && err != nil:
				t.Errorf("NewServer: %v", err)
			case test.want != "" && err == nil:
				t.Errorf("NewServer took it, want an error with %q", test.want)
			case test.want != "" && !strings.Contains(fault.Line(err), test.want):
				t.Errorf("error %q lacks %q", fault.Line(err), test.want)
			}
		})
	}
}

// A server that failed half-way must give back what it had bound.
func TestFailedServerFreesItsAddress(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	socket := testkit.TempUnixSocket(t)
	config := &configv1.ServerConfig{Listen: "unix://" + socket, HttpListen: taken.Addr().String()}
	if _, err := rpc.NewServer(rpc.ServerOptions{Config: config}); err == nil {
		t.Fatal("NewServer took an address that is in use")
	}
	if conn, err := net.Dial("unix", socket); err == nil {
		_ = conn.Close()
		t.Error("the first address is still bound")
	}
}

func TestUnixSocket(t *testing.T) {
	socket := testkit.TempUnixSocket(t)
	// A socket that a killed process left behind.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	config := &configv1.ServerConfig{Listen: "unix://" + socket, HttpListen: "off"}
	r := start(t, rigOptions{config: config})
	if r.server.Addr() != "unix://"+socket || r.server.HTTPAddr() != "" {
		t.Errorf("addresses: %q %q", r.server.Addr(), r.server.HTTPAddr())
	}
	if _, err := r.client.GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: "b"}); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v %v, want mode 0660", info.Mode(), err)
	}
	if _, err := rpc.NewServer(rpc.ServerOptions{Config: config}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second server on the socket: %v", err)
	}
}

func TestHandleHTTP(t *testing.T) {
	r := start(t, rigOptions{depend: func(s *rpc.Server) {
		s.HandleHTTP("GET /registry-events", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "noted") }))
	}})
	if code, body := r.httpGet(t, "/registry-events"); code != http.StatusOK || body != "noted" {
		t.Errorf("handler: %d %q", code, body)
	}
	if code, _ := r.httpGet(t, "/nothing"); code != http.StatusNotFound {
		t.Errorf("unknown path: %d", code)
	}
}
