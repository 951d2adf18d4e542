package client

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

const (
	// pieceBytes is how much of the tar one message brings.
	pieceBytes = 512 << 10
	// maxUploads bounds how often one context is sent when the connection breaks
	// each time: an upload does not go on, it begins again.
	maxUploads = 5
)

// UploadOption is an option of UploadDir.
type UploadOption func(*uploadSettings)

type uploadSettings struct{ dockerfile string }

// Dockerfile names the Dockerfile of the build, relative to the directory with
// "/" between names. It is sent whatever .dockerignore says, and an ignore file
// of its own, NAME.dockerignore, counts in place of .dockerignore, as in BuildKit.
// Default: "Dockerfile".
func Dockerfile(name string) UploadOption { return func(s *uploadSettings) { s.dockerfile = name } }

// UploadDir sends a directory as a build context of a project, without what its
// .dockerignore names, and returns what is stored; name its digest in
// Context.uploaded. Symbolic links are sent as links and never followed. Sockets
// are left out; devices and named pipes are an error. [ErrChanged]: a file was
// written to meanwhile.
//
// The directory is read twice: once for the digest of what is to be sent, so that
// a builder that has it already says so and nothing needs to be sent, and once to
// send it. A connection that breaks makes the upload begin again. A few MiB are
// held in memory, whatever the directory's size.
func (c *Client) UploadDir(ctx context.Context, project, dir string, opts ...UploadOption) (*builderv1.UploadContextResponse, error) {
	s := uploadSettings{dockerfile: "Dockerfile"}
	for _, opt := range opts {
		opt(&s)
	}
	t, err := openTree(dir, s.dockerfile)
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Close() }() // it was only read
	digest, err := c.digestOf(ctx, t)
	if err != nil {
		return nil, err
	}
	var res *builderv1.UploadContextResponse
	uploads := 0
	err = c.again(ctx, func() (bool, error) {
		up, err := c.newUpload(ctx, project, digest)
		if err != nil {
			return false, err
		}
		defer up.cancel()
		if res, err = up.send(t.writeTar); err == nil {
			return true, nil
		}
		if uploads++; uploads == maxUploads {
			err = final{err}
		}
		return up.sent, err
	})
	return res, err
}

// Upload sends a tar, plain or packed by gzip or zstd, as a build context of a
// project. It is sent once: a connection that breaks is an error.
func (c *Client) Upload(ctx context.Context, project string, tar io.Reader) (*builderv1.UploadContextResponse, error) {
	up, err := c.newUpload(ctx, project, "")
	if err != nil {
		return nil, err
	}
	defer up.cancel()
	res, err := up.stream(func(w io.Writer) error {
		_, err := io.Copy(w, tar)
		return err
	})
	if f, ok := errors.AsType[final](err); ok {
		return nil, f.error
	}
	return res, err
}

// upload is one call of UploadContext. It is an io.Writer, which sends.
type upload struct {
	call   builderv1.BuilderService_UploadContextClient
	cancel context.CancelFunc
	pack   bool  // the tar is worth packing
	sent   bool  // a piece went out
	broken error // of the first piece that did not
}

// digestOf is the digest of the bytes that sending the tree sends.
func (c *Client) digestOf(ctx context.Context, t *tree) (string, error) {
	sum := sha256.New()
	write := t.writeTar
	if !c.local {
		write = packing(write)
	}
	if err := write(untilDone{ctx, sum}); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

// untilDone writes until its context ends.
type untilDone struct {
	ctx context.Context //nolint:containedctx // it is that of one call
	io.Writer
}

func (w untilDone) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.Writer.Write(p)
}

// packing packs what write writes.
func packing(write func(io.Writer) error) func(io.Writer) error {
	return func(w io.Writer) error {
		packed, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			return err
		}
		if err := write(packed); err != nil {
			return err
		}
		return packed.Close()
	}
}

func (c *Client) newUpload(ctx context.Context, project, digest string) (*upload, error) {
	ctx, cancel := context.WithCancel(ctx)
	call, err := c.api.UploadContext(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	up := &upload{call: call, cancel: cancel, pack: !c.local}
	up.broken = call.Send(&builderv1.UploadContextRequest{Piece: &builderv1.UploadContextRequest_Header{
		Header: &builderv1.UploadHeader{Project: project, Digest: digest},
	}})
	return up, nil
}

// send sends what write writes, packed unless the builder is on this host.
func (u *upload) send(write func(io.Writer) error) (*builderv1.UploadContextResponse, error) {
	if u.pack {
		write = packing(write)
	}
	return u.stream(write)
}

// stream sends what write writes in pieces and returns the builder's answer. An
// error of write itself is final.
func (u *upload) stream(write func(io.Writer) error) (*builderv1.UploadContextResponse, error) {
	pieces := bufio.NewWriterSize(u, pieceBytes)
	err := write(pieces)
	if err == nil {
		err = pieces.Flush()
	}
	switch {
	case u.broken == nil && err != nil:
		return nil, final{err}
	case u.broken != nil && !errors.Is(u.broken, io.EOF):
		return nil, u.broken
	default:
		// io.EOF of Send says that the builder has answered already: with an error, or
		// because it needs no more.
		return u.call.CloseAndRecv()
	}
}

// Write sends one piece.
func (u *upload) Write(data []byte) (int, error) {
	if u.broken == nil {
		u.broken = u.call.Send(&builderv1.UploadContextRequest{Piece: &builderv1.UploadContextRequest_Data{Data: data}})
	}
	if u.broken != nil {
		return 0, u.broken
	}
	u.sent = true
	return len(data), nil
}
