package tenancy_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	tracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// want is what a tenant may get who names what is another's.
type want int

const (
	// refusal is an error that says no more than for something that does not exist.
	refusal want = iota
	// nothing is a refusal, or an answer in which there is nothing of the other.
	nothing
	// badRequest is a refusal, or an error of the call's own making.
	badRequest
)

// attempt is one call of blue.
type attempt struct {
	name     string
	want     want
	metadata []string
	requests []proto.Message
}

func one(name string, w want, req proto.Message, md ...string) attempt {
	return attempt{name, w, md, []proto.Message{req}}
}

// attempts are what blue tries, by method. A method that is not here fails the test.
func attempts(o *owned) map[string][]attempt {
	const (
		builder = "/kiln.builder.v1.BuilderService/"
		control = "/moby.buildkit.v1.Control/"
		bridge  = "/moby.buildkit.v1.frontend.LLBBridge/"
		content = "/containerd.services.content.v1.Content/"
	)
	all := map[string][]attempt{
		builder + "Build": append(specs(o, func(b *builderv1.BuildSpec) proto.Message { return &builderv1.BuildRequest{Spec: b} }),
			one("its request id", nothing, &builderv1.BuildRequest{Spec: blueSpec(nil), RequestId: "red-request"})),
		builder + "StartBuild": specs(o, func(b *builderv1.BuildSpec) proto.Message { return &builderv1.StartBuildRequest{Spec: b} }),
		builder + "WatchBuild": each(o.builds(), refusal, func(id string) proto.Message {
			return &builderv1.WatchBuildRequest{BuildId: id}
		}),
		builder + "GetBuild": each(o.builds(), refusal, func(id string) proto.Message { return &builderv1.GetBuildRequest{BuildId: id} }),
		builder + "ListBuilds": {
			one("all", nothing, &builderv1.ListBuildsRequest{}),
			one("its project", nothing, &builderv1.ListBuildsRequest{Filter: `project = "crimson"`}),
			one("one of a page", nothing, &builderv1.ListBuildsRequest{PageSize: 1}),
			one("its page token", badRequest, &builderv1.ListBuildsRequest{PageSize: 1, PageToken: o.pageToken}),
		},
		builder + "CancelBuild": each(o.builds(), refusal, func(id string) proto.Message { return &builderv1.CancelBuildRequest{BuildId: id} }),
		builder + "RetryBuild":  each(o.builds(), refusal, func(id string) proto.Message { return &builderv1.RetryBuildRequest{BuildId: id} }),
		builder + "UploadContext": {one("its project", refusal, &builderv1.UploadContextRequest{
			Piece: &builderv1.UploadContextRequest_Header{Header: &builderv1.UploadHeader{Project: red}},
		})},
		builder + "DownloadArtifact": {
			one("its artifact", refusal, &builderv1.DownloadArtifactRequest{BuildId: o.done, Artifact: o.artifact}),
		},
		builder + "ListDaemons":   {one("all", nothing, &builderv1.ListDaemonsRequest{})},
		builder + "DrainDaemon":   {one("the daemon", badRequest, &builderv1.DrainDaemonRequest{Daemon: "lab"})},
		builder + "UndrainDaemon": {one("the daemon", badRequest, &builderv1.UndrainDaemonRequest{Daemon: "lab"})},

		control + "DiskUsage": {one("all", refusal, &controlapi.DiskUsageRequest{})},
		control + "Prune":     {one("all", refusal, &controlapi.PruneRequest{All: true})},
		control + "Solve":     solves(o),
		control + "Status":    each(o.refs(), nothing, func(ref string) proto.Message { return &controlapi.StatusRequest{Ref: ref} }),
		control + "Session": {{"its session", nothing, []string{
			"x-docker-expose-session-uuid", o.session, "x-docker-expose-session-grpc-method", "/moby.filesync.v1.Auth/Credentials",
		}, nil}},
		control + "ListWorkers": {one("all", nothing, &controlapi.ListWorkersRequest{})},
		control + "Info":        {one("all", nothing, &controlapi.InfoRequest{})},
		control + "ListenBuildHistory": append(each(o.refs(), nothing, func(ref string) proto.Message {
			return &controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true}
		}),
			one("all that ended", nothing, &controlapi.BuildHistoryRequest{EarlyExit: true}),
			one("all that comes", nothing, &controlapi.BuildHistoryRequest{}),
			one("all that runs", nothing, &controlapi.BuildHistoryRequest{ActiveOnly: true}),
			one("by a filter", nothing, &controlapi.BuildHistoryRequest{EarlyExit: true, Filter: []string{"status==completed"}}),
		),
		control + "UpdateBuildHistory": append(each(o.refs(), refusal, func(ref string) proto.Message {
			return &controlapi.UpdateBuildHistoryRequest{Ref: ref, Delete: true}
		}), each(o.refs(), refusal, func(ref string) proto.Message {
			return &controlapi.UpdateBuildHistoryRequest{Ref: ref, Finalize: true}
		})...),

		content + "Info": each(o.digests, refusal, func(d string) proto.Message { return &contentapi.InfoRequest{Digest: d} }),
		content + "Read": each(o.digests, refusal, func(d string) proto.Message { return &contentapi.ReadContentRequest{Digest: d} }),
		content + "List": {
			one("all", nothing, &contentapi.ListContentRequest{}),
			one("by digest", nothing, &contentapi.ListContentRequest{Filters: []string{"digest==" + o.digests[0]}}),
		},
		content + "Update":       each(o.digests, refusal, func(d string) proto.Message { return &contentapi.UpdateRequest{Info: &contentapi.Info{Digest: d}} }),
		content + "Delete":       each(o.digests, refusal, func(d string) proto.Message { return &contentapi.DeleteContentRequest{Digest: d} }),
		content + "Status":       {one("its ref", refusal, &contentapi.StatusRequest{Ref: o.gateway})},
		content + "ListStatuses": {one("all", nothing, &contentapi.ListStatusesRequest{})},
		content + "Write": {one("its digest", refusal, &contentapi.WriteContentRequest{
			Action: contentapi.WriteAction_WRITE, Ref: "blue", Expected: o.digests[0],
		})},
		content + "Abort": {one("its ref", refusal, &contentapi.AbortRequest{Ref: o.gateway})},

		"/opentelemetry.proto.collector.trace.v1.TraceService/Export": {
			one("nothing", nothing, &tracev1.ExportTraceServiceRequest{}),
		},
	}
	for name, req := range frontendCalls() {
		for _, ref := range o.refs() {
			all[bridge+name] = append(all[bridge+name], one("of "+ref, refusal, req, "buildkit-controlapi-buildid", ref))
		}
	}
	return all
}

func (o *owned) builds() []string { return []string{o.done, o.running, o.gateway, o.live} }

// refs are BuildKit's names of the same builds.
func (o *owned) refs() []string { return o.builds() }

func each(ids []string, w want, req func(string) proto.Message) (all []attempt) {
	for _, id := range ids {
		all = append(all, one(id, w, req(id)))
	}
	return all
}

func blueSpec(change func(*builderv1.BuildSpec)) *builderv1.BuildSpec {
	b := inline("FROM scratch\nCOPY Dockerfile /blue\n")
	b.Project, b.Secrets = blue, nil
	if change != nil {
		change(b)
	}
	return b
}

// specs are builds that name what is red's.
func specs(o *owned, request func(*builderv1.BuildSpec) proto.Message) []attempt {
	uploaded := &builderv1.Context{Kind: &builderv1.Context_Uploaded{Uploaded: &builderv1.UploadedContext{Digest: o.context}}}
	return []attempt{
		one("its project", refusal, request(blueSpec(func(b *builderv1.BuildSpec) { b.Project = red }))),
		one("its context", refusal, request(blueSpec(func(b *builderv1.BuildSpec) { b.Context = uploaded }))),
		one("its context by name", refusal, request(blueSpec(func(b *builderv1.BuildSpec) {
			b.NamedContexts = map[string]*builderv1.Context{"other": uploaded}
		}))),
	}
}

// solves are builds by BuildKit's protocol that name what is red's.
func solves(o *owned) []attempt {
	solve := func(name string, w want, change func(*controlapi.SolveRequest)) attempt {
		req := &controlapi.SolveRequest{
			Ref: identity.NewID(), Frontend: "dockerfile.v0",
			FrontendAttrs: map[string]string{}, Exporters: []*controlapi.Exporter{}, Cache: &controlapi.CacheOptions{},
		}
		change(req)
		return one(name, w, req)
	}
	return []attempt{
		solve("its ref", badRequest, func(r *controlapi.SolveRequest) { r.Ref = o.live }),
		solve("its ended ref", badRequest, func(r *controlapi.SolveRequest) { r.Ref = o.gateway }),
		solve("its session", refusal, func(r *controlapi.SolveRequest) { r.Session = o.session }),
		solve("its session, as a probe", refusal, func(r *controlapi.SolveRequest) { r.Session, r.Internal = o.session, true }),
		solve("its session for policies", refusal, func(r *controlapi.SolveRequest) { r.SourcePolicySession = o.session }),
		solve("its session in an attribute", refusal, func(r *controlapi.SolveRequest) {
			r.FrontendAttrs["local-sessionid:context"] = o.session
		}),
		solve("its session in a graph", refusal, func(r *controlapi.SolveRequest) { r.Frontend, r.Definition = "", graphOf(o.session) }),
		solve("its session in an input", refusal, func(r *controlapi.SolveRequest) {
			r.FrontendInputs = map[string]*pb.Definition{"context": graphOf(o.session)}
		}),
	}
}

// graphOf reads the directory of a session.
func graphOf(session string) *pb.Definition {
	op := labMarshal(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{
		Identifier: "local://context", Attrs: map[string]string{pb.AttrLocalSessionID: session},
	}}})
	return &pb.Definition{Def: [][]byte{op}}
}

func labMarshal(m proto.Message) []byte {
	raw, err := proto.Marshal(m)
	if err != nil {
		panic(err) // of a message that is written here
	}
	return raw
}

// frontendCalls are the calls of a client's frontend, by method.
func frontendCalls() map[string]proto.Message {
	return map[string]proto.Message{
		"ResolveImageConfig": &gatewaypb.ResolveImageConfigRequest{Ref: "docker.io/library/scratch"},
		"ResolveSourceMeta":  &gatewaypb.ResolveSourceMetaRequest{Source: &pb.SourceOp{Identifier: "docker-image://scratch"}},
		"Solve":              &gatewaypb.SolveRequest{Frontend: "dockerfile.v0"},
		"ReadFile":           &gatewaypb.ReadFileRequest{FilePath: "/etc/passwd", Ref: "0"},
		"ReadDir":            &gatewaypb.ReadDirRequest{DirPath: "/", Ref: "0"},
		"StatFile":           &gatewaypb.StatFileRequest{Path: "/etc/passwd", Ref: "0"},
		"Evaluate":           &gatewaypb.EvaluateRequest{Ref: "0"},
		"Ping":               &gatewaypb.PingRequest{},
		"Return":             &gatewaypb.ReturnRequest{},
		"Inputs":             &gatewaypb.InputsRequest{},
		"NewContainer":       &gatewaypb.NewContainerRequest{ContainerID: "c"},
		"ReleaseContainer":   &gatewaypb.ReleaseContainerRequest{ContainerID: "c"},
		"ExecProcess":        &gatewaypb.ExecMessage{ProcessID: "p"},
		"ReadFileContainer":  &gatewaypb.ReadFileRequest{FilePath: "/etc/passwd", Ref: "0"},
		"ReadDirContainer":   &gatewaypb.ReadDirRequest{DirPath: "/", Ref: "0"},
		"StatFileContainer":  &gatewaypb.StatFileRequest{Path: "/etc/passwd", Ref: "0"},
		"Warn":               &gatewaypb.WarnRequest{},
	}
}

// TestTenants_AreStrangersByEveryMethod has one tenant name all that another owns, by
// every method that a builder serves: it gets nothing of it, and the other's builds go
// on. A method that is served and not tried fails the test.
func TestTenants_AreStrangersByEveryMethod(t *testing.T) {
	s := newStage(t)
	o := s.own(t)
	conn := s.as(t, blue)
	table := attempts(o)
	// What starts builds comes last: the history of blue's own builds says what they named.
	var asking, building []cell
	for _, m := range servedMethods() {
		if len(table[m.name]) == 0 {
			t.Errorf("%s is served, and nothing is tried by it", m.name)
		}
		for _, try := range table[m.name] {
			if strings.HasSuffix(m.name, "Control/Solve") || strings.HasSuffix(m.name, "Build") {
				building = append(building, cell{served: m, attempt: try})
			} else {
				asking = append(asking, cell{served: m, attempt: try})
			}
		}
	}
	for _, cells := range [][]cell{asking, building} {
		tryAll(t, conn, cells)
		for _, c := range cells {
			t.Run(strings.TrimPrefix(c.served.name, "/")+"/"+c.attempt.name, func(t *testing.T) {
				judge(t, o, c.attempt, c.answers, c.err)
			})
		}
	}

	// What blue tried has harmed nothing.
	api := builderv1.NewBuilderServiceClient(s.as(t, red))
	for _, id := range []string{o.running, o.live} {
		if state := stateOf(t, api, id); state != builderv1.BuildState_BUILD_STATE_RUNNING {
			t.Errorf("red's build %s is %s, want RUNNING", id, state)
		}
	}
	for _, id := range []string{o.done, o.gateway} {
		if state := stateOf(t, api, id); state != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
			t.Errorf("red's build %s is %s, want SUCCEEDED", id, state)
		}
	}
	if got := digestsOf(t, s.buildkit(t, red), o.gateway); len(got) != len(o.digests) {
		t.Errorf("red's history has %q, want %q", got, o.digests)
	}
	labtest.Must(api.CancelBuild(labtest.Context(t, 30*time.Second), &builderv1.CancelBuildRequest{BuildId: o.running}))(t)
	o.stop()
	if err := <-o.liveEnded; !errors.Is(err, context.Canceled) && status.Code(err) != codes.Canceled {
		t.Errorf("red's build by BuildKit's client ended with %v", err)
	}
	if log := s.Builder.Output(); strings.Contains(log, canary) {
		t.Error("the builder's log holds the secret")
	}
}

// cell is one attempt by one method, and what came of it.
type cell struct {
	served  served
	attempt attempt
	answers string
	err     error
}

// tryAll makes all attempts at once, for many wait for what never comes.
func tryAll(t *testing.T, conn *grpc.ClientConn, cells []cell) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range cells {
		wg.Go(func() {
			c := &cells[i]
			c.answers, c.err = call(t.Context(), conn, c.served, c.attempt)
		})
	}
	wg.Wait()
}

// served is a method of a service.
type served struct {
	name string
	desc protoreflect.MethodDescriptor
}

func servedMethods() (all []served) {
	for _, file := range []protoreflect.FileDescriptor{
		builderv1.File_kiln_builder_v1_builder_service_proto,
		controlapi.File_github_com_moby_buildkit_api_services_control_control_proto,
		gatewaypb.File_github_com_moby_buildkit_frontend_gateway_pb_gateway_proto,
		contentapi.File_services_content_v1_content_proto,
		tracev1.File_opentelemetry_proto_collector_trace_v1_trace_service_proto,
	} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				all = append(all, served{fmt.Sprintf("/%s/%s", service.FullName(), m.Name()), m})
			}
		}
	}
	return all
}

// answerWithin is how long blue reads what it gets. It is longer than the builder waits
// for a build that a call names and that has not come; streams that follow a build or
// the history do not end by themselves.
const answerWithin = 20 * time.Second

// call sends the requests of an attempt and returns what comes back as text.
func call(ctx context.Context, conn *grpc.ClientConn, m served, try attempt) (answers string, err error) {
	ctx, cancel := context.WithTimeout(with(ctx, try.metadata...), answerWithin)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, m.name)
	if err != nil {
		return "", err
	}
	for _, req := range try.requests {
		if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
	}
	if len(try.requests) > 0 {
		if err := stream.CloseSend(); err != nil {
			return "", err
		}
	}
	var all strings.Builder
	for {
		answer := dynamicpb.NewMessage(m.desc.Output())
		err := stream.RecvMsg(answer)
		if errors.Is(err, io.EOF) {
			return all.String(), nil
		}
		if err != nil {
			return all.String(), err
		}
		all.WriteString(prototext.Format(answer))
	}
}

// judge fails the test when blue got more than it may.
func judge(t *testing.T, o *owned, try attempt, answers string, err error) {
	t.Helper()
	told := answers
	if err != nil {
		told += prototext.Format(status.Convert(err).Proto())
	}
	for _, mark := range o.marks() {
		// What blue itself named may be said back to it.
		if mark != "" && strings.Contains(told, mark) && !strings.Contains(named(try), mark) {
			t.Errorf("blue was told %q:\n%.2000s", mark, told)
		}
	}
	code := status.Code(err)
	refused := code == codes.NotFound || code == codes.PermissionDenied || code == codes.Unimplemented
	switch {
	case refused, try.want == nothing && (err == nil || code == codes.DeadlineExceeded) && strings.TrimSpace(answers) == "":
	case try.want == nothing && (err == nil || code == codes.DeadlineExceeded || code == codes.AlreadyExists):
		if strings.Contains(answers, red) {
			t.Errorf("blue was told of red:\n%.2000s", answers)
		}
	case try.want == badRequest && (code == codes.InvalidArgument || code == codes.AlreadyExists || code == codes.FailedPrecondition):
	default:
		t.Errorf("blue got %v and\n%.2000s", err, answers)
	}
}

// named is all that an attempt names.
func named(try attempt) string {
	text := try.name + strings.Join(try.metadata, " ")
	for _, req := range try.requests {
		text += prototext.Format(req)
	}
	return text
}

func tarOf(t *testing.T, name, body string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(body)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
