package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Artifacts keeps what builds give besides images in a registry.
type Artifacts interface {
	// Open opens an artifact and tells its bytes.
	Open(build, name string) (*os.File, int64, error)
}

// pieceBytes is how much of an artifact is in a message.
const pieceBytes = 1 << 20

// DownloadArtifact implements the RPC.
func (s *Server) DownloadArtifact(req *builderv1.DownloadArtifactRequest, stream builderv1.BuilderService_DownloadArtifactServer) error {
	if _, err := s.get(stream.Context(), req.GetBuildId()); err != nil {
		return err
	}
	return deliver(stream, "read the stream as it comes, and go on with the offset of the bytes that you have",
		func(_ context.Context, send func(any) error) error { return s.artifact(req, send) })
}

// artifact gives send an artifact, in pieces.
func (s *Server) artifact(req *builderv1.DownloadArtifactRequest, send func(any) error) (err error) {
	file, size, err := s.artifacts.Open(req.GetBuildId(), req.GetArtifact())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if req.GetOffset() > size {
		beyond := fault.New(fault.OutOfRange, "OUT_OF_RANGE",
			fmt.Sprintf("the artifact has %d bytes, and the offset is %d", size, req.GetOffset()), "begin at 0, or at the bytes that you have")
		beyond.Field, beyond.Value = "offset", strconv.FormatInt(req.GetOffset(), 10)
		return beyond
	}
	rest := io.NewSectionReader(file, req.GetOffset(), size-req.GetOffset())
	piece := make([]byte, pieceBytes)
	for {
		n, err := io.ReadFull(rest, piece)
		if n > 0 {
			if err := send(&builderv1.DownloadArtifactResponse{Data: piece[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading an artifact: %w", err)
		}
	}
}
