package rpc_test

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// soon bounds what a test waits for.
const soon = 10 * time.Second

// builds is a real service with the behaviour that a test needs.
type builds struct {
	builderv1.UnimplementedBuilderServiceServer
	get    func(context.Context, *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error)
	build  func(*builderv1.BuildRequest, grpc.ServerStreamingServer[builderv1.BuildResponse]) error
	upload func(grpc.ClientStreamingServer[builderv1.UploadContextRequest, builderv1.UploadContextResponse]) error
}

func (b *builds) GetBuild(ctx context.Context, req *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
	if b.get == nil {
		return &builderv1.GetBuildResponse{}, nil
	}
	return b.get(ctx, req)
}

func (b *builds) Build(req *builderv1.BuildRequest, stream grpc.ServerStreamingServer[builderv1.BuildResponse]) error {
	if b.build == nil {
		return nil
	}
	return b.build(req, stream)
}

func (b *builds) UploadContext(stream grpc.ClientStreamingServer[builderv1.UploadContextRequest, builderv1.UploadContextResponse]) error {
	return b.upload(stream)
}

// rig is a running server and a client of it.
type rig struct {
	server *rpc.Server
	client builderv1.BuilderServiceClient
	conn   *grpc.ClientConn
	log    *logBuffer
	stop   context.CancelFunc
	ended  chan error
}

type rigOptions struct {
	config *configv1.ServerConfig
	tls    *configv1.ClientTLS
	impl   *builds
	server []grpc.ServerOption
	depend func(*rpc.Server)
	tel    *telemetry.Telemetry
	access auth.Authorizer
}

func loopback() *configv1.ServerConfig {
	return &configv1.ServerConfig{Listen: "127.0.0.1:0", HttpListen: "127.0.0.1:0"}
}

// start runs a server until the end of the test.
func start(t *testing.T, opts rigOptions) *rig {
	t.Helper()
	testkit.VerifyNoLeaks(t)
	if opts.config == nil {
		opts.config = loopback()
	}
	if opts.impl == nil {
		opts.impl = &builds{}
	}
	r := &rig{log: &logBuffer{}, ended: make(chan error, 1)}
	tel := opts.tel
	if tel == nil {
		tel = telemetry.Discard()
	}
	tel.Logger = slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	server, err := rpc.NewServer(rpc.ServerOptions{Name: "test", Config: opts.config, Telemetry: tel, GRPC: opts.server, Authorize: opts.access})
	if err != nil {
		t.Fatalf("NewServer: %v", err)
	}
	r.server = server
	builderv1.RegisterBuilderServiceServer(server, opts.impl)
	if opts.depend != nil {
		opts.depend(server)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.stop = cancel
	go func() { r.ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-r.ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(2 * soon):
			t.Error("Run has not ended")
		}
	})
	r.conn, err = rpc.Dial(server.Addr(), rpc.ClientOptions{TLS: opts.tls})
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { _ = r.conn.Close() })
	r.client = builderv1.NewBuilderServiceClient(r.conn)
	return r
}

// wait waits for the end of Run.
func (r *rig) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.ended:
		r.ended <- nil // For the cleanup.
		return err
	case <-time.After(2 * soon):
		t.Fatal("Run has not ended")
		return nil
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	t.Cleanup(cancel)
	return ctx
}

// recv makes a Build call and returns its error.
func (r *rig) buildErr(ctx context.Context, req *builderv1.BuildRequest) error {
	stream, err := r.client.Build(ctx, req)
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

type logBuffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

// refused checks the code and the reason of an error, and that it has a remedy.
func refused(t *testing.T, err error, code codes.Code, reason string) *status.Status {
	t.Helper()
	st := status.Convert(err)
	if st.Code() != code {
		t.Fatalf("code is %s, want %s: %v", st.Code(), code, err)
	}
	info := detail[*errdetails.ErrorInfo](st)
	switch {
	case info == nil:
		t.Fatalf("no ErrorInfo in %v", st)
	case info.GetReason() != reason || info.GetDomain() != "kiln.build":
		t.Fatalf("reason is %s of %s, want %s of kiln.build", info.GetReason(), info.GetDomain(), reason)
	case info.GetMetadata()["remedy"] == "":
		t.Fatalf("no remedy in %v", info)
	}
	return st
}

// detail is the first detail of a type, or its zero value.
func detail[T any](st *status.Status) T {
	for _, d := range st.Details() {
		if found, ok := d.(T); ok {
			return found
		}
	}
	var none T
	return none
}
