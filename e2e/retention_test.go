package e2e_test

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// Records, events and artifacts go when they are older than they are kept; a build
// that runs stays, however long it does.
func TestRetention(t *testing.T) {
	s := ownStack(t, lab.StackOptions{Builder: &configv1.BuilderConfig{Retention: &configv1.RetentionConfig{
		BuildAge: durationpb.New(4 * time.Second), ArtifactAge: durationpb.New(2 * time.Second), Interval: durationpb.New(200 * time.Millisecond),
	}}})
	runs := s.start(t, dockerfile("FROM "+s.base+"\nRUN sleep 7; echo "+unique()+"\n"), "kept").GetId()
	spec := dockerfile("FROM scratch\nCOPY <<EOF /x\n" + unique() + "\nEOF\n")
	spec.Outputs = []*builderv1.Output{{Kind: &builderv1.Output_Local{Local: &builderv1.LocalOutput{}}}}
	r := s.succeed(t, spec)
	artifact := r.outcome.GetOutputs()[0].GetArtifact()
	download := func() error {
		stream, err := s.api.DownloadArtifact(t.Context(), &builderv1.DownloadArtifactRequest{BuildId: r.id(), Artifact: artifact})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	if err := download(); err != nil {
		t.Errorf("at once: %v", err)
	}
	labtest.Eventually(t, 3500*time.Millisecond, "the artifact goes before the record", func() bool { return download() != nil })
	refused(t, download(), codes.NotFound, "NOT_FOUND", "")
	s.get(t, r.id())
	labtest.Eventually(t, 10*time.Second, "the record goes", func() bool {
		_, err := s.api.GetBuild(t.Context(), &builderv1.GetBuildRequest{BuildId: r.id()})
		return err != nil
	})
	refused(t, watch(t.Context(), s.api, r.id(), 0).err, codes.NotFound, "NOT_FOUND", "")
	s.ended(t, runs, builderv1.BuildState_BUILD_STATE_SUCCEEDED)
}
