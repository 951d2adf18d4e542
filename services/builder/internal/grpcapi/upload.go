package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// Contexts keeps uploaded contexts.
type Contexts interface {
	// Put stores the context in an archive whose bytes have the digest want, if
	// that is not empty.
	Put(ctx context.Context, project string, archive io.Reader, want string) (contextstore.Info, error)
	// Known is the context of an archive that the project sent before, by its bytes' digest.
	Known(project, archive string) (contextstore.Info, bool)
}

// silence is how long a caller that uploads may send nothing.
const silence = 2 * time.Minute

// UploadContext implements the RPC.
func (s *Server) UploadContext(stream builderv1.BuilderService_UploadContextServer) error {
	info, err := s.receive(stream.Context(), newUpload(stream))
	if err != nil {
		return err
	}
	return stream.SendAndClose(&builderv1.UploadContextResponse{
		Digest: info.Digest, SizeBytes: info.Bytes, Files: info.Files, ExpireTime: timestamppb.New(info.Expires),
	})
}

// receive reads the header and stores what follows. An archive that is here
// already need not come: its caller gets the answer at once.
func (s *Server) receive(ctx context.Context, up *upload) (contextstore.Info, error) {
	first, err := up.next(time.After(silence))
	if err != nil && !errors.Is(err, io.EOF) {
		return contextstore.Info{}, err
	}
	header := first.GetHeader()
	if header == nil {
		return contextstore.Info{}, fault.Invalid("header", "", "is missing", "send the header in the first message, and data after it")
	}
	if project := header.GetProject(); !build.ValidProject(project) {
		return contextstore.Info{}, fault.Invalid("header.project", project, "is not the name of a project", `use lower-case letters and digits, like "web"`)
	}
	if err := ofProject(ctx, header.GetProject()); err != nil {
		return contextstore.Info{}, err
	}
	if known, ok := s.contexts.Known(header.GetProject(), header.GetDigest()); ok {
		return known, nil
	}
	return s.contexts.Put(ctx, header.GetProject(), up, header.GetDigest())
}

// upload is the data of the messages of a stream. They come by a goroutine, for
// nothing but the end of the call ends a wait for a message; all else is done in
// the goroutine of the call, whose panics end the call only.
type upload struct {
	ctx      context.Context
	messages chan message
	left     []byte // of the last message
	ended    error  // how the stream ended; nil: it has not
}

type message struct {
	request *builderv1.UploadContextRequest
	err     error
}

// newUpload begins to receive, until an error or the end of the call, which gRPC
// ends the stream's context with.
func newUpload(stream builderv1.BuilderService_UploadContextServer) *upload {
	u := &upload{ctx: stream.Context(), messages: make(chan message)}
	lifecycle.Go(u.ctx, func(ctx context.Context) {
		for err := error(nil); err == nil; {
			var request *builderv1.UploadContextRequest
			err = lifecycle.Protect(ctx, func(context.Context) (err error) { // its decoder reads what a caller sends
				request, err = stream.Recv()
				return err
			})
			select {
			case u.messages <- message{request, err}:
			case <-ctx.Done():
				return
			}
		}
	})
	return u
}

func (u *upload) next(tooLate <-chan time.Time) (*builderv1.UploadContextRequest, error) {
	if u.ended != nil {
		return nil, u.ended
	}
	select {
	case m := <-u.messages:
		u.ended = m.err
		return m.request, m.err
	case <-u.ctx.Done():
		return nil, context.Cause(u.ctx)
	case <-tooLate:
		return nil, fault.New(fault.DeadlineExceeded, "TIMED_OUT",
			fmt.Sprintf("nothing of the context has come for %s", silence), "upload it again, without a pause")
	}
}

// Read implements io.Reader. Messages without data are silence too.
func (u *upload) Read(p []byte) (int, error) {
	if len(u.left) == 0 {
		timer := time.NewTimer(silence)
		defer timer.Stop()
		for len(u.left) == 0 {
			request, err := u.next(timer.C)
			if err != nil {
				return 0, err
			}
			if request.GetHeader() != nil {
				return 0, fault.Invalid("header", "", "comes twice", "send the header in the first message only")
			}
			u.left = request.GetData()
		}
	}
	n := copy(p, u.left)
	u.left = u.left[n:]
	return n, nil
}
