package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	"github.com/kilnbuild/kiln/pkg/testkit"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder"
)

// tenants is a builder that knows its callers by certificates, each with a rule.
type tenants struct {
	*lab.Stack
	ca    *testkit.CA
	dir   string
	state string
	addr  string
}

func newTenants(t *testing.T) *tenants {
	t.Helper()
	s := &tenants{Stack: bakeStack(t, 4), ca: testkit.NewCA(t, "ca"), dir: t.TempDir(), state: t.TempDir()}
	return s
}

// certificate makes the certificate of a name.
func (s *tenants) certificate(t *testing.T, name string) (cert, key string) {
	t.Helper()
	cert, key = filepath.Join(s.dir, name+".pem"), filepath.Join(s.dir, name+"-key.pem")
	s.ca.Issue(t, cert, key, name)
	return cert, key
}

// serve runs the builder until the returned function is called.
func (s *tenants) serve(t *testing.T) (stop func()) {
	t.Helper()
	cert, key := s.certificate(t, "server")
	cfg := lab.BuilderConfig(&configv1.BuilderConfig{StateDir: s.state}, s.Buildkitd.Addr, s.Registry.Addr)
	cfg.Server = &configv1.ServerConfig{
		Listen: "127.0.0.1:0", HttpListen: "off", Tls: &configv1.ServerTLS{CertFile: cert, KeyFile: key, ClientCaFile: s.ca.File},
		Access: []*configv1.AccessRule{
			{Identities: []string{"ann", "eve"}, Methods: []string{"*"}},
			{Identities: []string{"root"}, Methods: []string{"*"}, DaemonAdmin: true},
		},
	}
	service := labtest.Must(builder.New(t.Context(), cfg, telemetry.Discard()))(t)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- service.Run(ctx) }()
	s.addr = service.Addr()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func (s *tenants) client(t *testing.T, name string) *client.Client {
	t.Helper()
	cert, key := s.certificate(t, name)
	c := labtest.Must(client.New(t.Context(), "tcp://"+s.addr, client.WithServerConfig("localhost", s.ca.File), client.WithCredentials(cert, key)))(t)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// buildx runs an unmodified buildx as a caller.
func (s *tenants) buildx(t *testing.T, name string, args ...string) lab.Output {
	t.Helper()
	cert, key := s.certificate(t, name)
	config := t.TempDir()
	run := func(args ...string) lab.Output {
		t.Helper()
		return labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{
			Name: "buildx", Path: labtest.Must(lab.Bin("buildx"))(t), Args: args,
			Env: []string{"BUILDX_CONFIG=" + config, "DOCKER_CONFIG=" + config, "BUILDX_BUILDER=kiln"},
		}))(t)
	}
	run("create", "--name", "kiln", "--driver", "remote",
		"--driver-opt", "cacert="+s.ca.File+",cert="+cert+",key="+key+",servername=localhost", "tcp://"+s.addr)
	return run(args...)
}

// What a caller's builds left, its owner reads with buildx, before and after a restart
// of the builder, and nobody else learns of it.
func TestWhatBuildsLeft_IsForTheirOwner(t *testing.T) {
	s := newTenants(t)
	stop := s.serve(t)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY data /\n", "data": "x"})
	metadata := filepath.Join(t.TempDir(), "metadata.json")
	s.buildx(t, "ann", "build", "--push", "-t", s.Registry.Addr+"/tenants:1", "--provenance", "mode=max", "--metadata-file", metadata, dir)
	var told struct {
		Ref        string         `json:"buildx.build.ref"`
		Provenance map[string]any `json:"buildx.build.provenance"`
	}
	if err := json.Unmarshal(labtest.Must(os.ReadFile(metadata))(t), &told); err != nil {
		t.Fatal(err)
	}
	ref := told.Ref[strings.LastIndex(told.Ref, "/")+1:]
	if len(told.Provenance) == 0 || ref == "" {
		t.Fatalf("metadata %+v", told)
	}
	digests := s.digestsOf(t, "ann", ref)
	s.ownerReads(t, ref)
	s.othersRead(t, ref, digests)
	stop()
	defer s.serve(t)()
	s.othersRead(t, ref, digests)
	s.ownerReads(t, ref)
	for _, digest := range digests {
		if err := read(t, s.client(t, "ann"), digest); err != nil {
			t.Errorf("the owner reads %s: %v", digest, err)
		}
	}
	if err := read(t, s.client(t, "root"), digests[0]); err != nil {
		t.Errorf("the administrator reads %s: %v", digests[0], err)
	}
}

func (s *tenants) ownerReads(t *testing.T, ref string) {
	t.Helper()
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"history", "ls"}, ref},
		{[]string{"history", "logs", "--progress", "plain", ref}, "COPY data"},
		{[]string{"history", "inspect", ref}, "https://slsa.dev/provenance/"},
		{[]string{"history", "inspect", "attachment", ref, "--type", "provenance"}, "buildType"},
	} {
		out := s.buildx(t, "ann", test.args...)
		if !strings.Contains(out.Stdout+out.Stderr, test.want) {
			t.Errorf("%q shows no %q:\n%s%s", test.args, test.want, out.Stdout, out.Stderr)
		}
	}
}

// digestsOf returns the blobs that the record of a build names.
func (s *tenants) digestsOf(t *testing.T, name, ref string) (digests []string) {
	t.Helper()
	for _, rec := range listen(t, s.client(t, name), &controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true}) {
		digests = append(digests, rec.GetLogs().GetDigest())
		for _, d := range rec.GetResult().GetAttestations() {
			digests = append(digests, d.GetDigest())
		}
		for _, d := range rec.GetResult().GetResults() {
			digests = append(digests, d.GetDigest())
		}
	}
	if len(digests) < 2 {
		t.Fatalf("the record of %s names %q", ref, digests)
	}
	return digests
}

func listen(t *testing.T, c *client.Client, req *controlapi.BuildHistoryRequest) (records []*controlapi.BuildHistoryRecord) {
	t.Helper()
	stream := labtest.Must(c.ControlClient().ListenBuildHistory(t.Context(), req))(t)
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return records
		}
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, event.GetRecord())
	}
}

func read(t *testing.T, c *client.Client, digest string) error {
	t.Helper()
	if _, err := c.ContentClient().Info(t.Context(), &contentapi.InfoRequest{Digest: digest}); err != nil {
		return err
	}
	stream, err := c.ContentClient().Read(t.Context(), &contentapi.ReadContentRequest{Digest: digest})
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (s *tenants) othersRead(t *testing.T, ref string, digests []string) {
	t.Helper()
	eve := s.client(t, "eve")
	for _, req := range []*controlapi.BuildHistoryRequest{{EarlyExit: true}, {EarlyExit: true, Ref: ref}, {EarlyExit: true, Limit: 1}} {
		if got := listen(t, eve, req); len(got) != 0 {
			t.Errorf("another caller sees %v", got)
		}
	}
	for _, digest := range digests {
		if err := read(t, eve, digest); status.Code(err) != codes.NotFound {
			t.Errorf("another caller reads %s: %v", digest, err)
		}
	}
	for _, req := range []*controlapi.UpdateBuildHistoryRequest{{Ref: ref, Delete: true}, {Ref: ref, Pinned: true}, {Ref: ref, Finalize: true}} {
		if _, err := eve.ControlClient().UpdateBuildHistory(t.Context(), req); status.Code(err) != codes.NotFound {
			t.Errorf("another caller changes the record: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	stream := labtest.Must(eve.ControlClient().Status(ctx, &controlapi.StatusRequest{Ref: ref}))(t)
	if res, err := stream.Recv(); err == nil {
		t.Errorf("another caller sees the status %v", res)
	}
	_, err := eve.ControlClient().DiskUsage(t.Context(), &controlapi.DiskUsageRequest{})
	denied(t, "DiskUsage", err)
	prune := labtest.Must(eve.ControlClient().Prune(t.Context(), &controlapi.PruneRequest{All: true}))(t)
	_, err = prune.Recv()
	denied(t, "Prune", err)
	list := labtest.Must(eve.ContentClient().List(t.Context(), &contentapi.ListContentRequest{}))(t)
	_, err = list.Recv()
	denied(t, "List", err)
}

func denied(t *testing.T, what string, err error) {
	t.Helper()
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("%s of another caller: %v", what, err)
	}
}

// A Solve that buildkitd refuses before it has a job ends at once.
func TestSolve_OfAnUnknownExporterEndsAtOnce(t *testing.T) {
	s := bakeStack(t, 1)
	dir := t.TempDir()
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY data /\n", "data": "x"})
	start := time.Now()
	out, err := lab.Exec(labtest.Context(t, time.Minute), lab.Command{
		Name: "buildctl", Path: labtest.Must(lab.Bin("buildctl"))(t), Args: []string{"--addr", "tcp://" + s.Builder.Addr, "build",
			"--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + dir, "--output", "type=nonesuch"},
	})
	if err == nil || !strings.Contains(out.Stderr, "nonesuch") {
		t.Errorf("%v", err)
	}
	if took := time.Since(start); took > 2500*time.Millisecond {
		t.Errorf("it took %s", took)
	}
}
