package grpcapi_test

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/grpcapi"
)

// undecodable is an upload whose message the decoder has a defect for.
type undecodable struct {
	grpc.ClientStreamingServer[builderv1.UploadContextRequest, builderv1.UploadContextResponse]
	ctx context.Context //nolint:containedctx // of the stream
}

func (u undecodable) Context() context.Context { return u.ctx }

func (undecodable) Recv() (*builderv1.UploadContextRequest, error) { panic("a defect") }

// A defect in the decoder of an upload ends that upload, and is reported; the builder goes
// on.
func TestUpload_PanicEndsTheCallAlone(t *testing.T) {
	reports := make(chan *lifecycle.PanicError, 1)
	ctx := lifecycle.WithReporter(t.Context(), func(_ context.Context, p *lifecycle.PanicError) { reports <- p })
	server := grpcapi.NewServer(nil, nil, grpcapi.Translator{}, nil, nil, nil)
	err := server.UploadContext(undecodable{ctx: ctx})
	if _, panicked := errors.AsType[*lifecycle.PanicError](err); !panicked {
		t.Errorf("the upload ended with %v", err)
	}
	select {
	case p := <-reports:
		if p.Value != "a defect" || len(p.Stack) == 0 {
			t.Errorf("reported %v", p)
		}
	default:
		t.Error("nothing is reported")
	}
}
