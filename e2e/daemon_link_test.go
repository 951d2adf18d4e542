package e2e_test

import (
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// A daemon behind TLS and a slow link is reached by builder and cache manager, and builds: each piece of
// the handshake takes longer than the first backoff of gRPC.
func TestDaemon_BehindTLSAndASlowLink(t *testing.T) {
	l := labtest.New(t)
	pki := &secured{lab: l, dir: filepath.Join(l.Dir, "pki")}
	runKiln(t, "certs", "init", "--dir", pki.dir)
	runKiln(t, "certs", "issue", "buildkitd", "--dir", pki.dir, "--host", "buildkitd.example.org")
	runKiln(t, "certs", "issue", "client", "--dir", pki.dir)
	ctx := labtest.Context(t, 2*time.Minute)
	daemon := labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{TLS: pki.serverTLS("buildkitd")}))(t)
	link := labtest.Must(l.StartProxy(daemon.TCP[len("tcp://"):]))(t)
	link.SetDelay(400 * time.Millisecond)

	certificates := pki.clientTLS("client")
	certificates.ServerName = "buildkitd.example.org" // the link has another address than the daemon
	cfg := &configv1.DaemonConfig{Name: "far", Address: "tcp://" + link.Addr, Tls: certificates}
	builder := labtest.Must(l.StartBuilder(ctx, &configv1.BuilderConfig{Daemons: []*configv1.DaemonConfig{cfg}}, lab.ServiceOptions{}))(t)
	caches := labtest.Must(l.StartCacheManager(ctx, &configv1.CacheManagerConfig{Daemons: []*configv1.DaemonConfig{cfg}}, lab.ServiceOptions{}))(t)
	for _, s := range []*lab.Service{builder, caches} {
		labtest.Eventually(t, 20*time.Second, s.Name+" serves", func() bool {
			return healthOf(t, s.Addr) == grpc_health_v1.HealthCheckResponse_SERVING
		})
	}
	api := labtest.Must(dial(l, builder.Addr))(t)
	r := readBuild(ctx, api, inline(map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}))
	if r.err != nil || r.outcome.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		t.Errorf("%v, %v", r.err, r.outcome)
	}
}
