package client

import (
	"context"
	"errors"
	"io"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Download writes an artifact of a build to w, and returns how many bytes it
// wrote. When the connection breaks it goes on where it was. The artifact's name
// and size are in the build's outcome.
func (c *Client) Download(ctx context.Context, id, artifact string, w io.Writer) (int64, error) {
	return c.DownloadFrom(ctx, id, artifact, 0, w)
}

// DownloadFrom is Download without the first bytes, of which offset is the
// number: they are there from an earlier download.
func (c *Client) DownloadFrom(ctx context.Context, id, artifact string, offset int64, w io.Writer) (int64, error) {
	var written int64
	err := c.again(ctx, func() (bool, error) {
		n, err := c.download(ctx, &builderv1.DownloadArtifactRequest{BuildId: id, Artifact: artifact, Offset: offset + written}, w)
		written += n
		return n > 0, err
	})
	return written, err
}

func (c *Client) download(ctx context.Context, req *builderv1.DownloadArtifactRequest, w io.Writer) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.api.DownloadArtifact(ctx, req)
	if err != nil {
		return 0, err
	}
	var written int64
	for {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return written, nil
		}
		if err != nil {
			return written, err
		}
		n, err := w.Write(res.GetData())
		written += int64(n)
		if err != nil {
			return written, final{err}
		}
	}
}
