package grpcapi_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/dynamicpb"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// onlyWeb is a rule that lets everybody do everything, in one project.
var onlyWeb = &configv1.AccessRule{Identities: []string{"*"}, Methods: []string{"*"}, Projects: []string{"web"}}

// namesBuilds are the methods whose request names a build, and a call of each.
var namesBuilds = map[string]func(ctx context.Context, api builderv1.BuilderServiceClient, id string) error{
	"GetBuild": func(ctx context.Context, api builderv1.BuilderServiceClient, id string) error {
		_, err := api.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: id})
		return err
	},
	"WatchBuild": func(ctx context.Context, api builderv1.BuilderServiceClient, id string) error {
		stream, err := api.WatchBuild(ctx, &builderv1.WatchBuildRequest{BuildId: id, FromSequence: 99})
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return err
	},
	"CancelBuild": func(ctx context.Context, api builderv1.BuilderServiceClient, id string) error {
		_, err := api.CancelBuild(ctx, &builderv1.CancelBuildRequest{BuildId: id})
		return err
	},
	"RetryBuild": func(ctx context.Context, api builderv1.BuilderServiceClient, id string) error {
		_, err := api.RetryBuild(ctx, &builderv1.RetryBuildRequest{BuildId: id})
		return err
	},
	"DownloadArtifact": func(ctx context.Context, api builderv1.BuilderServiceClient, id string) error {
		stream, err := api.DownloadArtifact(ctx, &builderv1.DownloadArtifactRequest{BuildId: id, Artifact: "out.tar"})
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return err
	},
}

// namesNoBuild are the other methods. Lists have tests of their own (TestListBuilds…),
// and so have contexts, in package contextstore.
var namesNoBuild = []string{
	"Build", "StartBuild", "ListBuilds", "UploadContext", "ListDaemons", "DrainDaemon", "UndrainDaemon",
}

// A build of a project that the caller may not see gets the answer of one that is
// nowhere, to the letter, from every method that names a build.
func TestForeignBuild_IsNotFound(t *testing.T) {
	r := newRig(t, onlyWeb)
	const foreign, unknown = "0f0e0d0c", "99999999"
	rec := build.Record{ID: foreign, Project: "payroll", State: build.Queued, Created: time.Now(), Origin: build.OriginAPI}
	if _, _, err := r.store.Create(t.Context(), rec, []byte("request")); err != nil {
		t.Fatal(err)
	}
	rec.State, rec.Ended = build.Succeeded, time.Now()
	if err := r.store.Commit(t.Context(), rec, []build.Frame{{Sequence: 1, Data: []byte{}}}); err != nil {
		t.Fatal(err)
	}
	file := must(r.artifacts.Create("payroll", foreign, "out.tar"))(t)
	must(io.WriteString(file, "content"))(t)
	must(file.Commit())(t)
	for method, call := range namesBuilds {
		got, want := status.Convert(call(within(t), r.client, foreign)), status.Convert(call(within(t), r.client, unknown))
		if got.Code() != codes.NotFound || !sameAnswer(got, want, foreign, unknown) {
			t.Errorf("%s of a build of another project: %v; of one that is nowhere: %v", method, got, want)
		}
	}
}

// sameAnswer reports whether two answers, about two ids of one length, tell the same.
func sameAnswer(a, b *status.Status, idA, idB string) bool {
	text := func(s *status.Status, id string) string {
		all := s.String()
		for _, detail := range s.Proto().GetDetails() {
			all += "\n" + string(detail.GetValue())
		}
		return strings.ReplaceAll(all, id, "ID")
	}
	return text(a, idA) == text(b, idB)
}

// A method that is added must be put into one of the two lists.
func TestForeignBuild_CoversEveryMethod(t *testing.T) {
	methods := builderv1.File_kiln_builder_v1_builder_service_proto.Services().ByName("BuilderService").Methods()
	listed := map[string]bool{}
	for name := range namesBuilds {
		listed[name] = true
	}
	for _, name := range namesNoBuild {
		listed[name] = true
	}
	for i := range methods.Len() {
		method := methods.Get(i)
		name := string(method.Name())
		if !listed[name] {
			t.Errorf("%s is in neither list: say whether its request names a build", name)
		}
		delete(listed, name)
		request := dynamicpb.NewMessage(method.Input()).Descriptor()
		if names := request.Fields().ByName("build_id") != nil; names != (namesBuilds[name] != nil) {
			t.Errorf("%s names a build: %v, and is listed otherwise", name, names)
		}
	}
	for name := range listed {
		t.Errorf("%s is listed and is no method", name)
	}
}

// The answer to an upload does not tell whether another project sent the same.
func TestUploadContext_HidesUploadsOfOtherProjects(t *testing.T) {
	r := newRig(t, onlyWeb)
	archive := archiveOf(t, 1000)
	if _, err := r.contexts.Put(t.Context(), "payroll", strings.NewReader(string(archive)), digestOf(archive)); err != nil {
		t.Fatal(err)
	}
	stream := must(r.client.UploadContext(within(t)))(t)
	if err := stream.Send(header("web", digestOf(archive))); err != nil {
		t.Fatal(err)
	}
	res, err := stream.CloseAndRecv()
	code(t, err, codes.InvalidArgument) // an archive of no bytes has another digest
	if res.GetDigest() != "" {
		t.Errorf("the builder knows an archive that only another project sent: %v", res)
	}
	res = must(r.upload(t, header("web", digestOf(archive)), data(archive)))(t)
	if res.GetFiles() != 1 {
		t.Errorf("%v", res)
	}
}
