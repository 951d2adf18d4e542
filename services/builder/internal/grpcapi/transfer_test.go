package grpcapi_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/pagetoken"
	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/artifacts"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
	"github.com/kilnbuild/kiln/services/builder/internal/grpcapi"
	"github.com/kilnbuild/kiln/services/builder/internal/quota"
	"github.com/kilnbuild/kiln/services/builder/internal/sqlite"
)

// rig is a server of transfers with its stores.
type rig struct {
	client    builderv1.BuilderServiceClient
	store     *sqlite.Store
	contexts  *contextstore.Store
	artifacts *artifacts.Store
}

func must[T any](value T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// closed closes it with the test.
func closed[T io.Closer](t *testing.T, c T) T {
	t.Helper()
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// newRig serves from stores in a directory, which have one build, "b1" of the project
// "web", to callers that the rules allow; without rules, to all.
func newRig(t *testing.T, rules ...*configv1.AccessRule) rig {
	t.Helper()
	testkit.VerifyNoLeaks(t)
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	store := closed(t, must(sqlite.Open(t.Context(), filepath.Join(dir, "builds.db")))(t))
	rec := build.Record{ID: "b1", Project: "web", State: build.Queued, Created: time.Now()}
	if _, _, err := store.Create(t.Context(), rec, []byte("request")); err != nil {
		t.Fatal(err)
	}
	contexts := closed(t, must(contextstore.Open(filepath.Join(dir, "contexts"), contextstore.Limits{
		KeepAge: time.Hour, KeepBytes: 1 << 30, MaxBytes: 1 << 30, MaxEntries: 1000, MaxRatio: 200, MaxDepth: 20, MaxPathBytes: 200,
	}, log, time.Now))(t))
	kept := closed(t, must(artifacts.Open(filepath.Join(dir, "artifacts"), quota.Limits{}, log, time.Now))(t))
	builds := build.NewService(build.Options{Store: store, Log: log})
	server := must(rpc.NewServer(rpc.ServerOptions{Name: "test", Config: &configv1.ServerConfig{
		Listen: "127.0.0.1:0", HttpListen: "127.0.0.1:0", Access: rules,
	}}))(t)
	builderv1.RegisterBuilderServiceServer(server, grpcapi.NewServer(builds, nil, translator, contexts, kept, pagetoken.EphemeralTokens()))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	conn := closed(t, must(rpc.Dial(server.Addr(), rpc.ClientOptions{}))(t))
	return rig{client: builderv1.NewBuilderServiceClient(conn), store: store, contexts: contexts, artifacts: kept}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func header(project, digest string) *builderv1.UploadContextRequest {
	return &builderv1.UploadContextRequest{Piece: &builderv1.UploadContextRequest_Header{
		Header: &builderv1.UploadHeader{Project: project, Digest: digest},
	}}
}

func data(b []byte) *builderv1.UploadContextRequest {
	return &builderv1.UploadContextRequest{Piece: &builderv1.UploadContextRequest_Data{Data: b}}
}

func (r rig) upload(t *testing.T, messages ...*builderv1.UploadContextRequest) (*builderv1.UploadContextResponse, error) {
	t.Helper()
	stream := must(r.client.UploadContext(within(t)))(t)
	for _, m := range messages {
		if err := stream.Send(m); err != nil {
			break // CloseAndRecv tells why
		}
	}
	return stream.CloseAndRecv()
}

func archiveOf(t *testing.T, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)}); err != nil {
		t.Fatal(err)
	}
	_, err := w.Write(bytes.Repeat([]byte("a"), size))
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func code(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%v: %v, want %s", got, err, want)
	}
}

func TestUploadContext(t *testing.T) {
	r := newRig(t)
	archive := archiveOf(t, 300_000)
	half := len(archive) / 2
	first, err := r.upload(t, header("web", ""), data(archive[:half]), data(nil), data(archive[half:]))
	if err != nil || first.GetSizeBytes() != 300_000 || first.GetFiles() != 1 || time.Until(first.GetExpireTime().AsTime()) < 50*time.Minute {
		t.Fatalf("%v, %v", first, err)
	}
	for name, messages := range map[string][]*builderv1.UploadContextRequest{
		"nothing":           {},
		"no header":         {data(archive)},
		"an empty message":  {{}},
		"a second header":   {header("web", ""), data(archive[:half]), header("web", "")},
		"no project's name": {header("No Project", ""), data(archive)},
		"no project":        {header("", ""), data(archive)},
		"no archive":        {header("web", "")},
		"another digest":    {header("web", digestOf(nil)), data(archive)},
		"too much at once":  {header("web", ""), data(make([]byte, 1<<20+1))},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.upload(t, messages...)
			code(t, err, codes.InvalidArgument)
		})
	}
}

// Who announces the bytes of an archive that is here gets the answer before it
// sends any.
func TestUploadOfWhatIsKnown(t *testing.T) {
	r := newRig(t)
	archive := archiveOf(t, 100)
	first := must(r.upload(t, header("web", digestOf(archive)), data(archive)))(t)
	stream := must(r.client.UploadContext(within(t)))(t)
	if err := stream.Send(header("web", digestOf(archive))); err != nil {
		t.Fatal(err)
	}
	var again builderv1.UploadContextResponse
	if err := stream.RecvMsg(&again); err != nil || again.GetDigest() != first.GetDigest() {
		t.Errorf("%v, %v", &again, err)
	}
}

// silent is a stream of which a header comes, and then nothing with data in it.
type silent struct {
	grpc.ServerStreamingServer[builderv1.UploadContextResponse]
	ctx    context.Context
	every  time.Duration // between empty messages
	headed bool
}

func (s *silent) Context() context.Context { return s.ctx }

func (s *silent) Recv() (*builderv1.UploadContextRequest, error) {
	if !s.headed {
		s.headed = true
		return header("web", ""), nil
	}
	select {
	case <-time.After(s.every):
		return data(nil), nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func (*silent) SendAndClose(*builderv1.UploadContextResponse) error { return nil }

// A caller that falls silent is not waited for, also when it sends empty messages.
func TestUploadEndsInSilence(t *testing.T) {
	for name, every := range map[string]time.Duration{"nothing comes": time.Hour, "empty messages come": time.Second} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				contexts := closed(t, must(contextstore.Open(dir, contextstore.Limits{}, slog.New(slog.DiscardHandler), time.Now))(t))
				server := grpcapi.NewServer(nil, nil, translator, contexts, nil, pagetoken.EphemeralTokens())
				ctx, cancel := context.WithCancel(t.Context())
				began := time.Now()
				err := server.UploadContext(&silent{ctx: ctx, every: every})
				if took := time.Since(began); fault.KindOf(err) != fault.DeadlineExceeded || took < time.Minute || took > 5*time.Minute {
					t.Errorf("%v after %s", err, took)
				}
				cancel() // as gRPC does when the call has ended
				synctest.Wait()
			})
		})
	}
}

func (r rig) download(t *testing.T, build, artifact string, offset int64) ([]byte, error) {
	t.Helper()
	stream := must(r.client.DownloadArtifact(within(t), &builderv1.DownloadArtifactRequest{BuildId: build, Artifact: artifact, Offset: offset}))(t)
	var all []byte
	for {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		if len(piece.GetData()) > 1<<20 {
			t.Errorf("a message of %d bytes", len(piece.GetData()))
		}
		all = append(all, piece.GetData()...)
	}
}

func TestDownloadArtifact(t *testing.T) {
	r := newRig(t)
	content := bytes.Repeat([]byte("0123456789"), 250_000) // three messages
	for name, content := range map[string][]byte{"image.tar": content, "empty": nil} {
		w := must(r.artifacts.Create("web", "b1", name))(t)
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	for _, offset := range []int64{0, 1, 1 << 20, int64(len(content)) - 1, int64(len(content))} {
		if got, err := r.download(t, "b1", "image.tar", offset); err != nil || !bytes.Equal(got, content[offset:]) {
			t.Errorf("from %d: %d bytes, %v", offset, len(got), err)
		}
	}
	if got, err := r.download(t, "b1", "empty", 0); err != nil || len(got) != 0 {
		t.Errorf("an empty one: %q, %v", got, err)
	}
	for name, c := range map[string]struct {
		build, artifact string
		offset          int64
		want            codes.Code
	}{
		"past the end":     {"b1", "image.tar", int64(len(content)) + 1, codes.OutOfRange},
		"before the start": {"b1", "image.tar", -1, codes.InvalidArgument},
		"another build":    {"b2", "image.tar", 0, codes.NotFound},
		"another artifact": {"b1", "other", 0, codes.NotFound},
		"a way out":        {"b1", "../b1/image.tar", 0, codes.NotFound},
		"a directory":      {"b1", ".", 0, codes.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.download(t, c.build, c.artifact, c.offset)
			code(t, err, c.want)
		})
	}
}
