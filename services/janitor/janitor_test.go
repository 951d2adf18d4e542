package janitor

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	"github.com/kilnbuild/kiln/pkg/testkit"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

func TestDefaults(t *testing.T) {
	cfg := DefaultConfig()
	if cfg.GetKeepAge().AsDuration() != 168*time.Hour || cfg.GetCheckInterval().AsDuration() != 15*time.Second {
		t.Errorf("times %v", cfg)
	}
	if cfg.GetServer().GetListen() != "127.0.0.1:50053" || cfg.GetServer().GetHttpListen() != "127.0.0.1:9463" {
		t.Errorf("server %v", cfg.GetServer())
	}
	if cfg.GetRegistry().GetAddress() != "localhost:5000" {
		t.Errorf("registry %v", cfg.GetRegistry())
	}
	given := &configv1.JanitorConfig{Registry: &configv1.RegistryConfig{Address: "r:1"}}
	if Complete(given).GetRegistry().GetAddress() != "r:1" || given.GetServer() != nil {
		t.Error("Complete must keep what is set, and not change what it was given")
	}
}

func TestNewRefuses(t *testing.T) {
	for want, registry := range map[string]*configv1.RegistryConfig{
		"registry.address":       {Address: "no host"},
		"registry.password_file": {Username: "joe"},
	} {
		_, err := New(t.Context(), &configv1.JanitorConfig{Registry: registry, StateDir: t.TempDir()}, telemetry.Discard())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// Without its registry the service starts, says what is wrong, and ends when told
// to, leaving nothing behind.
func TestWithoutRegistry(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	s, err := New(t.Context(), &configv1.JanitorConfig{
		Server: &configv1.ServerConfig{Listen: "127.0.0.1:0", HttpListen: "127.0.0.1:0"},
		// The port of the discard protocol, on which nothing listens.
		Registry: &configv1.RegistryConfig{Address: "127.0.0.1:9", StorageRoot: t.TempDir()}, StateDir: t.TempDir(),
	}, telemetry.Discard())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	conn, err := rpc.Dial(s.Addr(), rpc.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client := janitorv1.NewJanitorServiceClient(conn)

	res, err := client.CheckRegistry(ctx, &janitorv1.CheckRegistryRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]janitorv1.CheckState{
		"reachable": janitorv1.CheckState_CHECK_STATE_FAIL, "auth": janitorv1.CheckState_CHECK_STATE_UNKNOWN,
		"latency": janitorv1.CheckState_CHECK_STATE_UNKNOWN, "catalog": janitorv1.CheckState_CHECK_STATE_UNKNOWN,
		"delete": janitorv1.CheckState_CHECK_STATE_UNKNOWN,
	}
	for _, c := range res.GetChecks() {
		if state, checked := want[c.GetName()]; checked && c.GetState() != state {
			t.Errorf("%s: %s", c.GetName(), c.GetState())
		}
	}
	if len(res.GetChecks()) != 8 || res.GetState() != janitorv1.CheckState_CHECK_STATE_FAIL {
		t.Errorf("%v", res)
	}
	if _, err := client.GetUsage(ctx, &janitorv1.GetUsageRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("GetUsage: %v", err)
	}
	if p, err := client.GetPolicy(ctx, &janitorv1.GetPolicyRequest{}); err != nil || p.GetPolicy().GetVersion() != 1 {
		t.Errorf("GetPolicy: %v, %v", p, err)
	}
	health, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil || health.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health: %v, %v", health, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}
