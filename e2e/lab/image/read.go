package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// maxFile bounds what ReadFile returns, in bytes.
const maxFile = 16 << 20

// Digest asks the registry for the digest that a reference has now: "sha256:…".
func Digest(ctx context.Context, ref string) (string, error) {
	desc, err := Descriptor(ctx, ref)
	if err != nil {
		return "", err
	}
	return desc.Digest.String(), nil
}

// Descriptor asks the registry what it serves under a reference: its manifest or
// index, with digest and media type.
func Descriptor(ctx context.Context, ref string) (*remote.Descriptor, error) {
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	desc, err := remote.Get(r, remote.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return desc, nil
}

// Pull reads an image from a registry. platform, such as "linux/arm64", chooses
// one from an index; empty means "linux/amd64" there. All that is read from it is
// checked against its digests.
func Pull(ctx context.Context, ref, platform string) (v1.Image, error) {
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	opts := []remote.Option{remote.WithContext(ctx)}
	if platform != "" {
		p, err := v1.ParsePlatform(platform)
		if err != nil {
			return nil, fmt.Errorf("image: %w", err)
		}
		opts = append(opts, remote.WithPlatform(*p))
	}
	img, err := remote.Image(r, opts...)
	if err != nil {
		return nil, fmt.Errorf("image: pulling %s: %w", ref, err)
	}
	return img, nil
}

// ReadFile returns the content of a regular file of an image's root file system,
// as its layers leave it. path may begin with "/".
func ReadFile(img v1.Image, path string) ([]byte, error) {
	flat := mutate.Extract(img)
	defer func() { _ = flat.Close() }()
	want := strings.TrimPrefix(path, "/")
	for r := tar.NewReader(flat); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("image: no file %s", path)
		}
		if err != nil {
			return nil, fmt.Errorf("image: %w", err)
		}
		if strings.TrimPrefix(h.Name, "/") != want || h.Typeflag != tar.TypeReg {
			continue
		}
		if h.Size > maxFile {
			return nil, fmt.Errorf("image: %s has %d bytes, more than %d", path, h.Size, maxFile)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return nil, fmt.Errorf("image: reading %s: %w", path, err)
		}
		return data, nil
	}
}
