package cachemanager

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
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

func TestDefaults(t *testing.T) {
	cfg := DefaultConfig()
	if cfg.GetKeepAge().AsDuration() != 48*time.Hour || cfg.GetKeepBytes() != 1e11 || cfg.GetInterval().AsDuration() != 10*time.Minute {
		t.Errorf("policy %v", cfg)
	}
	if cfg.GetServer().GetListen() != "127.0.0.1:50052" || cfg.GetServer().GetHttpListen() != "127.0.0.1:9462" {
		t.Errorf("server %v", cfg.GetServer())
	}
	given := &configv1.CacheManagerConfig{KeepBytes: 7}
	if Complete(given).GetKeepBytes() != 7 || given.GetServer() != nil {
		t.Error("Complete must keep what is set, and not change what it was given")
	}
}

func TestNewRefusesOneDaemonTwice(t *testing.T) {
	tests := []struct {
		daemons []*configv1.DaemonConfig
		want    string
	}{
		{[]*configv1.DaemonConfig{{Address: "unix:///a"}, {Address: "unix:///b"}}, "daemons[1].name"},
		{[]*configv1.DaemonConfig{{Name: "a", Address: "unix:///a"}, {Name: "b", Address: "unix:///a"}}, "daemons[1].address"},
	}
	for _, test := range tests {
		_, err := New(t.Context(), &configv1.CacheManagerConfig{Daemons: test.daemons, StateDir: t.TempDir()}, telemetry.Discard())
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
}

// Without its daemon the service starts, says that it is not serving and why,
// and ends when told to, leaving nothing behind.
func TestWithoutDaemon(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	s, err := New(t.Context(), &configv1.CacheManagerConfig{
		Server:   &configv1.ServerConfig{Listen: "127.0.0.1:0", HttpListen: "127.0.0.1:0"},
		StateDir: t.TempDir(),
		Daemons:  []*configv1.DaemonConfig{{Name: "gone", Address: "unix://" + testkit.TempUnixSocket(t)}},
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

	_, err = cachemanagerv1.NewCacheManagerServiceClient(conn).GetUsage(ctx, &cachemanagerv1.GetUsageRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), `daemon "gone"`) {
		t.Errorf("GetUsage: %v", err)
	}
	_, err = cachemanagerv1.NewCacheManagerServiceClient(conn).AcquireLease(ctx, &cachemanagerv1.AcquireLeaseRequest{
		Directory: "/x", Mode: cachemanagerv1.LeaseMode_LEASE_MODE_IMPORT,
	})
	if status.Code(err) != codes.NotFound {
		t.Errorf("AcquireLease: %v", err)
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
