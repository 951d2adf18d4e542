package client_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// script is a gRPC server that answers as a test says, so that streams break
// where the test wants them to. How the builder itself behaves is tested in e2e.
type script struct {
	builderv1.UnimplementedBuilderServiceServer

	startBuild  func(context.Context, *builderv1.StartBuildRequest) (*builderv1.StartBuildResponse, error)
	watchBuild  func(*builderv1.WatchBuildRequest, builderv1.BuilderService_WatchBuildServer) error
	getBuild    func(context.Context, *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error)
	cancelBuild func(context.Context, *builderv1.CancelBuildRequest) (*builderv1.CancelBuildResponse, error)
	retryBuild  func(context.Context, *builderv1.RetryBuildRequest) (*builderv1.RetryBuildResponse, error)
	upload      func(builderv1.BuilderService_UploadContextServer) error
	download    func(*builderv1.DownloadArtifactRequest, builderv1.BuilderService_DownloadArtifactServer) error
}

func (s *script) StartBuild(ctx context.Context, req *builderv1.StartBuildRequest) (*builderv1.StartBuildResponse, error) {
	return s.startBuild(ctx, req)
}

func (s *script) WatchBuild(req *builderv1.WatchBuildRequest, stream builderv1.BuilderService_WatchBuildServer) error {
	return s.watchBuild(req, stream)
}

func (s *script) GetBuild(ctx context.Context, req *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
	return s.getBuild(ctx, req)
}

func (s *script) CancelBuild(ctx context.Context, req *builderv1.CancelBuildRequest) (*builderv1.CancelBuildResponse, error) {
	return s.cancelBuild(ctx, req)
}

func (s *script) RetryBuild(ctx context.Context, req *builderv1.RetryBuildRequest) (*builderv1.RetryBuildResponse, error) {
	return s.retryBuild(ctx, req)
}

func (s *script) UploadContext(stream builderv1.BuilderService_UploadContextServer) error {
	return s.upload(stream)
}

func (s *script) DownloadArtifact(req *builderv1.DownloadArtifactRequest, stream builderv1.BuilderService_DownloadArtifactServer) error {
	return s.download(req, stream)
}

// listener remembers its connections, so that a test can cut them.
type listener struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, conn)
		l.mu.Unlock()
	}
	return conn, err
}

// cut closes all connections; new ones are accepted.
func (l *listener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.conns {
		_ = conn.Close()
	}
	l.conns = nil
}

// serve runs a script on loopback until the test ends.
func serve(t testing.TB, s *script, opts ...grpc.ServerOption) *listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{Listener: ln}
	server := grpc.NewServer(opts...)
	builderv1.RegisterBuilderServiceServer(server, s)
	var served sync.WaitGroup
	served.Go(func() {
		if err := server.Serve(l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		server.Stop()
		served.Wait()
	})
	return l
}

// dial makes a client of a script.
func dial(t testing.TB, s *script, opts ...client.Option) (*client.Client, *listener) {
	t.Helper()
	l := serve(t, s)
	return connect(t, l.Addr().String(), opts...), l
}

func connect(t testing.TB, target string, opts ...client.Option) *client.Client {
	t.Helper()
	c, err := client.Dial(target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// kilnError is an error as a builder sends it.
func kilnError(t testing.TB, code codes.Code, reason, remedy string, retryAfter time.Duration) error {
	t.Helper()
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: "kiln.build", Reason: reason, Metadata: map[string]string{"remedy": remedy}}}
	if retryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
	}
	st, err := status.New(code, "no").WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

// record answers StartBuild with a build of this id.
func record(id string) func(context.Context, *builderv1.StartBuildRequest) (*builderv1.StartBuildResponse, error) {
	return func(context.Context, *builderv1.StartBuildRequest) (*builderv1.StartBuildResponse, error) {
		return &builderv1.StartBuildResponse{Build: &builderv1.BuildRecord{Id: id}}, nil
	}
}

func logEvent(sequence uint64, text string) *builderv1.BuildEvent {
	return &builderv1.BuildEvent{Sequence: sequence, Kind: &builderv1.BuildEvent_Log{Log: &builderv1.LogEvent{Data: []byte(text)}}}
}

func endEvent(sequence uint64, outcome *builderv1.Outcome) *builderv1.BuildEvent {
	return &builderv1.BuildEvent{Sequence: sequence, Kind: &builderv1.BuildEvent_Outcome{Outcome: outcome}}
}

var succeeded = &builderv1.Outcome{State: builderv1.BuildState_BUILD_STATE_SUCCEEDED}
