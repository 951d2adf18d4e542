package gateway

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	"github.com/kilnbuild/kiln/pkg/testkit"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/synckey"
)

// gate is a queue whose turns come when a test says so.
type gate struct {
	mu    sync.Mutex
	open  chan struct{}
	full  bool
	turns int // held or waited for
}

func (g *gate) Enter(build.Entry) (build.Turn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.full {
		return nil, fault.New(fault.ResourceExhausted, "LIMIT_REACHED", "3 builds wait, the limit", "try again later")
	}
	g.turns++
	return &turn{gate: g, open: g.open}, nil
}

func (g *gate) Readmit(build.Entry) build.Turn {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.turns++
	return &turn{gate: g, open: g.open}
}

func (g *gate) Close() {}

// hold makes the builds that come from now on wait, until the returned function
// is called.
func (g *gate) hold() (open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	ch := make(chan struct{})
	g.open = ch
	return func() { close(ch) }
}

func (g *gate) held() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.turns
}

type turn struct {
	gate *gate
	open chan struct{}
	once sync.Once
}

func (t *turn) Wait(ctx context.Context, notify func(build.Waiting)) error {
	select {
	case <-t.open:
		return nil
	default:
	}
	for place := 2; place > 0; place-- {
		notify(build.Waiting{Position: place, Reason: "4 builds are running"})
	}
	select {
	case <-t.open:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t *turn) Release() {
	t.once.Do(func() {
		t.gate.mu.Lock()
		defer t.gate.mu.Unlock()
		t.gate.turns--
	})
}

// memory is what the gateway needs of a store.
type memory struct {
	build.Store
	mu      sync.Mutex
	records map[string]build.Record
	ends    map[string]int
}

func (m *memory) Create(_ context.Context, rec build.Record, _ []byte) (build.Record, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.records[rec.ID]; ok {
		return build.Record{}, false, fault.New(fault.AlreadyExists, "ALREADY_EXISTS", "the id is known", "choose another")
	}
	m.records[rec.ID] = rec
	return rec, true, nil
}

func (m *memory) Commit(_ context.Context, rec build.Record, _ []build.Frame) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rec.State.Final() {
		m.ends[rec.ID]++
	}
	m.records[rec.ID] = rec
	return nil
}

func (m *memory) Get(_ context.Context, id string) (build.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rec, ok := m.records[id]
	if !ok {
		return rec, build.ErrUnknown
	}
	return rec, nil
}

func (m *memory) ids() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.records))
}

type noMetrics struct{}

func (noMetrics) BuildStarted(context.Context, build.Origin) {}
func (noMetrics) BuildWaited(context.Context, time.Duration) {}
func (noMetrics) BuildEnded(context.Context, build.Record)   {}
func (noMetrics) Pick(context.Context) (build.Daemon, error) {
	return nil, errors.New("not in these tests")
}
func (noMetrics) Health(string) (since time.Time, err error) { return time.Time{}, nil }
func (noMetrics) encode(build.Event) ([]byte, error)         { return nil, nil }

// strict grants nothing that it is asked for.
type strict struct{}

func (strict) Entitlements(names []string) error {
	if len(names) == 0 {
		return nil
	}
	return fault.New(fault.PermissionDenied, "POLICY_DENIED", "the entitlement is not granted", "leave it out")
}

func (strict) Frontend(name string, attrs map[string]string) error {
	if name == "" || name == "dockerfile.v0" || attrs["source"] == oldFrontend {
		return nil
	}
	return fault.New(fault.PermissionDenied, "POLICY_DENIED", "the frontend is not granted", "leave it out")
}

func (strict) SBOMGenerator(string) error {
	return fault.New(fault.PermissionDenied, "POLICY_DENIED", "the generator is not granted", "leave it out")
}

func (strict) Cache(kind string, _ map[string]string) error {
	if kind == "registry" || kind == "local" || kind == "inline" {
		return nil
	}
	return fault.New(fault.PermissionDenied, "POLICY_DENIED", "the cache is not granted", "leave it out")
}

func (strict) Insecure(host string) error {
	if host == "" { // tests have exporters of sessions
		return nil
	}
	return fault.New(fault.PermissionDenied, "POLICY_DENIED", "the insecure registry is not granted", "leave it out")
}

// backend is the daemon as the gateway sees it.
type backend struct{ conn *grpc.ClientConn }

func (backend) Name() string             { return "d1" }
func (b backend) Conn() *grpc.ClientConn { return b.conn }

func (b backend) Pick(context.Context) (Daemon, error)    { return b, nil }
func (b backend) Current(context.Context) (Daemon, error) { return b, nil }

// identityKey is the metadata by which the tests' callers say who they are.
const identityKey = "test-identity"

// rig is a gateway before a daemon, with real clients.
type rig struct {
	daemon  *daemon
	gate    *gate
	store   *memory
	builds  *build.Service
	gateway *Gateway
	addr    string
}

func newRig(t *testing.T, change ...func(*build.Options)) *rig {
	t.Helper()
	manager, err := session.NewManager()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{
		daemon: &daemon{sessions: manager, jobs: map[string]*job{}},
		gate:   &gate{},
		store:  &memory{records: map[string]build.Record{}, ends: map[string]int{}},
	}
	r.gate.hold()()
	var nothing noMetrics
	options := build.Options{
		Pool: nothing, Store: r.store, Queue: r.gate, Metrics: nothing, Log: telemetry.Discard().Logger, Encode: nothing.encode,
	}
	for _, c := range change {
		c(&options)
	}
	r.builds = build.NewService(options)
	server := grpc.NewServer()
	controlapi.RegisterControlServer(server, r.daemon)
	gatewaypb.RegisterLLBBridgeServer(server, bridgeServer{daemon: r.daemon})
	conn, err := rpc.Dial(serve(t, server), rpc.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	r.gateway = New(Options{Daemons: backend{conn}, Builds: r.builds, Policy: strict{}, Log: telemetry.Discard().Logger, SyncKey: synckey.Keys{}.Client, Caller: func(ctx context.Context) build.Caller {
		var who build.Caller
		if named := metadata.ValueFromIncomingContext(ctx, identityKey); len(named) > 0 {
			who.Identity = named[0]
		}
		return who
	}})
	r.serve(t)
	return r
}

// serve runs the gateway in the server that the builder has.
func (r *rig) serve(t *testing.T) {
	t.Helper()
	server, err := rpc.NewServer(rpc.ServerOptions{
		Name: "test", GRPC: r.gateway.ServerOptions(),
		Config: &configv1.ServerConfig{Listen: "127.0.0.1:0", HttpListen: "off"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		r.builds.Interrupt()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		closing, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.builds.Close(closing); err != nil {
			t.Error(err)
		}
		for id, n := range r.store.ends {
			if n != 1 {
				t.Errorf("build %s ended %d times", id, n)
			}
		}
		if n := r.gate.held(); n != 0 {
			t.Errorf("%d turns were not given back", n)
		}
	})
	r.addr = server.Addr()
}

func serve(t *testing.T, server *grpc.Server) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return listener.Addr().String()
}

// client is an unmodified BuildKit client of a caller.
func (r *rig) client(t *testing.T, identity string) *client.Client {
	t.Helper()
	as := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, identityKey, identity)
	}
	c, err := client.New(t.Context(), "tcp://"+r.addr,
		client.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return next(as(ctx), method, req, reply, cc, opts...)
		})),
		client.WithGRPCDialOption(grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return next(as(ctx), desc, cc, method, opts...)
		})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// final waits for the end of a build.
func (r *rig) final(t *testing.T, ref string) build.Record {
	t.Helper()
	var rec build.Record
	testkit.Eventually(t, 10*time.Second, func() bool {
		rec, _ = r.store.Get(t.Context(), ref)
		return rec.State.Final()
	})
	return rec
}

// conn is a plain connection to the gateway, of a caller without an identity.
func (r *rig) conn(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := rpc.Dial(r.addr, rpc.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
