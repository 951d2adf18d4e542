// Package tenancy_test holds that two tenants of one builder are strangers to each
// other: by every method of the builder's API and of BuildKit's API behind it.
package tenancy_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// The tenants. Each has one project of the same name, and a rule that lets it call
// every method of a builder's caller. The operator may do everything.
const (
	red, blue, operator = "crimson", "azure", "operator"

	methods = `"/kiln.builder.v1.BuilderService/*", "/moby.buildkit.v1.*", ` +
		`"/containerd.services.content.v1.Content/*", "/opentelemetry.proto.collector.trace.v1.TraceService/*"`

	rules = `rules:
  - identities: ["*"]
    methods: ["/grpc.health.v1.Health/Check"]
  - identities: [operator]
    methods: ["*"]
    daemon_admin: true
  - identities: [crimson]
    methods: [` + methods + `]
    projects: [crimson]
  - identities: [azure]
    methods: [` + methods + `]
    projects: [azure]
`

	// canary is red's secret. Its steps print it, and blue must see it nowhere.
	canary = "canary-d2b1f0c7"
	// projectKey names the project of a BuildKit client's build.
	projectKey = "kiln-project"
)

// stage is a stack with the two tenants.
type stage struct {
	*lab.Stack
	lab  *lab.Lab
	base string
}

func token(tenant string) string { return "kiln_test_" + tenant + "_0123456789abcdef" }

func newStage(t *testing.T) *stage {
	t.Helper()
	l := labtest.New(t)
	var tokens strings.Builder
	tokens.WriteString("tokens:\n")
	for _, tenant := range []string{red, blue, operator} {
		fmt.Fprintf(&tokens, "  - {identity: %s, sha256: %x}\n", tenant, sha256.Sum256([]byte(token(tenant))))
	}
	labtest.Write(t, l.Dir, map[string]string{"rules.yaml": rules, "tokens.yaml": tokens.String()})
	ctx := labtest.Context(t, 3*time.Minute)
	s := &stage{lab: l}
	s.Stack = labtest.Must(l.StartStack(ctx, lab.StackOptions{Builder: &configv1.BuilderConfig{
		Server: &configv1.ServerConfig{
			PolicyFile: filepath.Join(l.Dir, "rules.yaml"),
			TokensFile: filepath.Join(l.Dir, "tokens.yaml"),
			AuditFile:  filepath.Join(l.Dir, "audit.log"),
		},
		MaxRunningBuilds: 8,
	}}))(t)
	s.base = labtest.Must(image.PushBase(ctx, s.Registry.Addr))(t)
	return s
}

// bearer shows a tenant's token, and names its project, on each call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + token(string(b)), projectKey: string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return false }

// as connects to the builder as a tenant.
func (s *stage) as(t *testing.T, tenant string) *grpc.ClientConn {
	t.Helper()
	conn := labtest.Must(lab.Dial(s.Builder.Addr, grpc.WithPerRPCCredentials(bearer(tenant))))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// buildkit is BuildKit's own client as a tenant.
func (s *stage) buildkit(t *testing.T, tenant string) *client.Client {
	t.Helper()
	c := labtest.Must(client.New(t.Context(), "tcp://"+s.Builder.Addr,
		client.WithGRPCDialOption(grpc.WithPerRPCCredentials(bearer(tenant))),
		client.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials()))))(t)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// owned is what red has in the builder and in its daemon.
type owned struct {
	done, running       string   // builds by RPC
	gateway, live       string   // refs of builds by BuildKit's client: ended, and running
	session             string   // of the running one
	context             string   // digest of an upload
	artifact            string   // of done
	digests             []string // of what the daemon keeps of its builds
	pageToken           string
	stop                func() // ends the running builds
	liveEnded, runEnded chan error
}

// marks are the texts that must not be in what blue gets.
func (o *owned) marks() []string {
	all := []string{canary, o.done, o.running, o.gateway, o.live, o.session, o.context}
	return append(all, o.digests...)
}

const waits = "RUN --mount=type=secret,id=token i=0; while [ $i -lt 600 ]; do cat /run/secrets/token; echo; sleep 0.2; i=$((i+1)); done\n"

// own has red do all that leaves something behind, and keeps a build of each kind
// running.
func (s *stage) own(t *testing.T) *owned {
	t.Helper()
	o := &owned{liveEnded: make(chan error, 1), runEnded: make(chan error, 1)}
	ctx, stop := context.WithCancel(t.Context())
	o.stop = stop
	t.Cleanup(stop)
	api := builderv1.NewBuilderServiceClient(s.as(t, red))

	spec := inline("FROM " + s.base + "\nRUN --mount=type=secret,id=token cat /run/secrets/token >/length\n")
	spec.Outputs = []*builderv1.Output{{Kind: &builderv1.Output_Archive{Archive: &builderv1.ArchiveOutput{
		Format: builderv1.ArchiveFormat_ARCHIVE_FORMAT_OCI, Artifact: "image",
	}}}}
	o.done, o.artifact = buildTo(t, api, spec), "image"
	o.context = upload(t, api)

	started := labtest.Must(api.StartBuild(ctx, &builderv1.StartBuildRequest{Spec: inline("FROM " + s.base + "\n" + waits)}))(t)
	o.running = started.GetBuild().GetId()

	bk := s.buildkit(t, red)
	o.gateway = identity.NewID()
	if err := solve(labtest.Context(t, time.Minute), t, bk, o.gateway, nil, "FROM "+s.base+"\nRUN echo done\n"); err != nil {
		t.Fatal(err)
	}
	o.live = identity.NewID()
	sess := labtest.Must(session.NewSession(ctx, ""))(t)
	o.session = sess.ID()
	go func() {
		o.liveEnded <- solve(ctx, t, bk, o.live, sess, "FROM "+s.base+"\n"+waits)
	}()
	labtest.Eventually(t, 30*time.Second, "both builds run", func() bool {
		return stateOf(t, api, o.running) == builderv1.BuildState_BUILD_STATE_RUNNING &&
			stateOf(t, api, o.live) == builderv1.BuildState_BUILD_STATE_RUNNING
	})
	o.digests = digestsOf(t, bk, o.gateway)
	page := labtest.Must(api.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{PageSize: 1}))(t)
	if o.pageToken = page.GetNextPageToken(); o.pageToken == "" {
		t.Fatal("red's list has one page")
	}
	return o
}

func inline(dockerfile string) *builderv1.BuildSpec {
	return &builderv1.BuildSpec{
		Project: red,
		Context: &builderv1.Context{Kind: &builderv1.Context_Inline{Inline: &builderv1.InlineContext{
			Files: map[string]*builderv1.InlineFile{"Dockerfile": {Content: []byte(dockerfile)}},
		}}},
		Secrets: []*builderv1.Secret{{Id: "token", Value: []byte(canary)}},
	}
}

// buildTo builds, and returns the id of the build, which must succeed.
func buildTo(t *testing.T, api builderv1.BuilderServiceClient, spec *builderv1.BuildSpec) (id string) {
	t.Helper()
	stream := labtest.Must(api.Build(labtest.Context(t, time.Minute), &builderv1.BuildRequest{Spec: spec}))(t)
	for {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return id
		}
		if err != nil {
			t.Fatal(err)
		}
		if e := res.GetEvent().GetStarted(); e != nil {
			id = e.GetBuildId()
		}
		if o := res.GetEvent().GetOutcome(); o != nil && o.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
			t.Fatalf("outcome %v", o)
		}
	}
}

func stateOf(t *testing.T, api builderv1.BuilderServiceClient, id string) builderv1.BuildState {
	t.Helper()
	res, err := api.GetBuild(t.Context(), &builderv1.GetBuildRequest{BuildId: id})
	if err != nil {
		return builderv1.BuildState_BUILD_STATE_UNSPECIFIED
	}
	return res.GetBuild().GetState()
}

// solve builds a Dockerfile by BuildKit's client.
func solve(ctx context.Context, t *testing.T, c *client.Client, ref string, sess *session.Session, dockerfile string) error {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		return err
	}
	files, err := fsutil.NewFS(dir)
	if err != nil {
		return err
	}
	secrets := secretsprovider.FromMap(map[string][]byte{"token": []byte(canary)})
	opt := client.SolveOpt{
		Ref: ref, Frontend: "dockerfile.v0",
		FrontendAttrs: map[string]string{"attest:provenance": "mode=min"},
		LocalMounts:   map[string]fsutil.FS{"context": files, "dockerfile": files},
		Session:       []session.Attachable{secrets},
		Exports:       []client.ExportEntry{{Type: "image", Attrs: map[string]string{"name": "red/image"}}},
	}
	if sess != nil {
		opt.SharedSession = sess
	}
	_, err = c.Solve(ctx, nil, opt, nil)
	return err
}

// digestsOf are the digests of what the daemon keeps of a build of the caller.
func digestsOf(t *testing.T, c *client.Client, ref string) (all []string) {
	t.Helper()
	stream := labtest.Must(c.ControlClient().ListenBuildHistory(labtest.Context(t, 20*time.Second),
		&controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true}))(t)
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		record := event.GetRecord()
		all = append(all, record.GetLogs().GetDigest())
		for _, d := range record.GetResult().GetResults() {
			all = append(all, d.GetDigest())
		}
		for _, d := range record.GetResult().GetAttestations() {
			all = append(all, d.GetDigest())
		}
	}
	if len(all) < 2 {
		t.Fatalf("the history of red's own build has the digests %q", all)
	}
	return all
}

// upload uploads a context of one file.
func upload(t *testing.T, api builderv1.BuilderServiceClient) string {
	t.Helper()
	stream := labtest.Must(api.UploadContext(t.Context()))(t)
	for _, piece := range []*builderv1.UploadContextRequest{
		{Piece: &builderv1.UploadContextRequest_Header{Header: &builderv1.UploadHeader{Project: red}}},
		{Piece: &builderv1.UploadContextRequest_Data{Data: tarOf(t, "Dockerfile", "FROM scratch\nCOPY Dockerfile /red\n")}},
	} {
		if err := stream.Send(piece); err != nil {
			t.Fatal(err)
		}
	}
	return labtest.Must(stream.CloseAndRecv())(t).GetDigest()
}

// with adds metadata to a call.
func with(ctx context.Context, pairs ...string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}
