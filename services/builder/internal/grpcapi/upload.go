package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// Contexts keeps uploaded contexts.
type Contexts interface {
	// Put stores the context in an archive whose bytes have the digest want, if
	// that is not empty.
	Put(ctx context.Context, archive io.Reader, want string) (contextstore.Info, error)
	// Known is the context of an archive that came before, by its bytes' digest.
	Known(archive string) (contextstore.Info, bool)
}

// silence is how long a caller that uploads may send nothing.
const silence = 2 * time.Minute

// UploadContext implements the RPC.
func (s *Server) UploadContext(stream builderv1.BuilderService_UploadContextServer) error {
	up := &upload{stream: stream}
	var info contextstore.Info
	done := make(chan error, 1)
	go func() {
		var err error
		info, err = s.receive(stream.Context(), up)
		done <- err
	}()
	tick := time.NewTicker(silence / 8)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
			return stream.SendAndClose(&builderv1.UploadContextResponse{
				Digest: info.Digest, SizeBytes: info.Bytes, Files: info.Files, ExpireTime: timestamppb.New(info.Expires),
			})
		case now := <-tick.C:
			if since := up.waiting.Load(); since != 0 && now.Sub(time.Unix(0, since)) > silence {
				// Returning ends the stream, and with it the goroutine, which leaves nothing.
				return fault.New(fault.DeadlineExceeded, "TIMED_OUT",
					fmt.Sprintf("nothing of the context has come for %s", silence), "upload it again, without a pause")
			}
		}
	}
}

// receive reads the header and stores what follows. An archive that is here
// already need not come: its caller gets the answer at once.
func (s *Server) receive(ctx context.Context, up *upload) (contextstore.Info, error) {
	first, err := up.next()
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
	if known, ok := s.contexts.Known(header.GetDigest()); ok {
		return known, nil
	}
	return s.contexts.Put(ctx, up, header.GetDigest())
}

// upload reads the data of the messages of a stream.
type upload struct {
	stream  builderv1.BuilderService_UploadContextServer
	left    []byte       // of the last message
	waiting atomic.Int64 // for a message since, in Unix nanoseconds; 0: not
}

func (u *upload) next() (*builderv1.UploadContextRequest, error) {
	u.waiting.Store(time.Now().UnixNano())
	defer u.waiting.Store(0)
	return u.stream.Recv()
}

// Read implements io.Reader.
func (u *upload) Read(p []byte) (int, error) {
	for len(u.left) == 0 {
		message, err := u.next()
		if err != nil {
			return 0, err
		}
		if message.GetHeader() != nil {
			return 0, fault.Invalid("header", "", "comes twice", "send the header in the first message only")
		}
		u.left = message.GetData()
	}
	n := copy(p, u.left)
	u.left = u.left[n:]
	return n, nil
}
