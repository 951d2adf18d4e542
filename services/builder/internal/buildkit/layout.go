package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/containerd/containerd/v2/core/content"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/hostdir"
)

// layoutStore reads the blobs of an OCI image layout, and nothing else of it: the
// daemon asks by digest. (containerd's own store of such a directory writes to it,
// and follows links out of it.) The daemon checks what it reads.
// https://github.com/opencontainers/image-spec/blob/main/image-layout.md
type layoutStore struct{ root *os.Root }

// Info implements content.InfoProvider.
func (s layoutStore) Info(_ context.Context, of digest.Digest) (content.Info, error) {
	f, size, err := s.open(of)
	if err != nil {
		return content.Info{}, err
	}
	return content.Info{Digest: of, Size: size}, f.Close()
}

// ReaderAt implements content.Provider.
func (s layoutStore) ReaderAt(_ context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	f, size, err := s.open(desc.Digest)
	if err != nil {
		return nil, err
	}
	return blob{f, size}, nil
}

func (s layoutStore) open(of digest.Digest) (*os.File, int64, error) {
	if err := of.Validate(); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", cerrdefs.ErrInvalidArgument, err)
	}
	name := path.Join("blobs", of.Algorithm().String(), of.Encoded())
	f, info, err := hostdir.OpenFile(s.root, name)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, hostdir.ErrSpecial):
		return nil, 0, fmt.Errorf("the OCI layout has no blob %s: %w", of, cerrdefs.ErrNotFound)
	case err != nil:
		return nil, 0, fmt.Errorf("the OCI layout's blob %s cannot be read: %w", of, err)
	}
	return f, info.Size(), nil
}

type blob struct {
	*os.File
	size int64
}

// Size implements content.ReaderAt.
func (b blob) Size() int64 { return b.size }

func layoutLacks(c build.OCILayoutContext) error {
	return fault.Invalid("", c.Digest, fmt.Sprintf("is not in the OCI layout %q", c.Path),
		"name the digest of a manifest or index in its index.json, and the directory that holds oci-layout and blobs")
}

// What a content.Store does beside, this one does not.

// Update implements content.Manager.
func (layoutStore) Update(context.Context, content.Info, ...string) (content.Info, error) {
	return content.Info{}, cerrdefs.ErrNotImplemented
}

// Walk implements content.Manager.
func (layoutStore) Walk(context.Context, content.WalkFunc, ...string) error {
	return cerrdefs.ErrNotImplemented
}

// Delete implements content.Manager.
func (layoutStore) Delete(context.Context, digest.Digest) error { return cerrdefs.ErrNotImplemented }

// Status implements content.IngestManager.
func (layoutStore) Status(context.Context, string) (content.Status, error) {
	return content.Status{}, cerrdefs.ErrNotImplemented
}

// ListStatuses implements content.IngestManager.
func (layoutStore) ListStatuses(context.Context, ...string) ([]content.Status, error) {
	return nil, cerrdefs.ErrNotImplemented
}

// Abort implements content.IngestManager.
func (layoutStore) Abort(context.Context, string) error { return cerrdefs.ErrNotImplemented }

// Writer implements content.Ingester.
func (layoutStore) Writer(context.Context, ...content.WriterOpt) (content.Writer, error) {
	return nil, cerrdefs.ErrNotImplemented
}
