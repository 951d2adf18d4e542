package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// DeleteManifest deletes a manifest, and with it the tags that lead to it. One that is gone
// is no error.
func (c *Client) DeleteManifest(ctx context.Context, repository string, digest content.Digest) error {
	err := c.authorized(ctx, c.transport, repository, ggcr.DeleteScope, http.MethodDelete, "/manifests/"+string(digest),
		http.StatusAccepted, http.StatusNotFound)
	return c.explain(ctx, err, "delete manifest "+repository+"@"+string(digest))
}

// PutBlob uploads a blob, and returns its digest.
func (c *Client) PutBlob(ctx context.Context, repository string, data []byte) (content.Digest, error) {
	layer := static.NewLayer(data, types.OCILayer)
	digest, err := layer.Digest()
	if err != nil {
		return "", err
	}
	bounded, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err = remote.WriteLayer(c.registry.Repo(repository), layer, remote.WithContext(bounded), remote.WithTransport(c.transport), remote.WithAuth(c.auth))
	return content.Digest(digest.String()), c.explain(ctx, err, "take a blob in "+repository)
}

// PutManifest uploads a manifest without a tag, and returns its digest.
func (c *Client) PutManifest(ctx context.Context, repository string, mediaType content.MediaType, data []byte) (content.Digest, error) {
	sum := sha256.Sum256(data)
	digest := content.Digest("sha256:" + hex.EncodeToString(sum[:]))
	bounded, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	ref := c.registry.Repo(repository).Digest(string(digest))
	err := remote.Put(ref, given{data, types.MediaType(mediaType)},
		remote.WithContext(bounded), remote.WithTransport(c.transport), remote.WithAuth(c.auth))
	return digest, c.explain(ctx, err, "take a manifest in "+repository)
}

// given is a manifest as remote.Put takes it.
type given struct {
	data      []byte
	mediaType types.MediaType
}

func (g given) RawManifest() ([]byte, error)        { return g.data, nil }
func (g given) MediaType() (types.MediaType, error) { return g.mediaType, nil }

// HasManifest reports whether the registry has a manifest, asked over a connection of its own.
func (c *Client) HasManifest(ctx context.Context, repository string, digest content.Digest) (bool, error) {
	return c.has(ctx, repository, "/manifests/"+string(digest), "manifest")
}

// HasBlob reports whether the registry says that it has a blob, asked over a connection of its own.
func (c *Client) HasBlob(ctx context.Context, repository string, digest content.Digest) (bool, error) {
	return c.has(ctx, repository, "/blobs/"+string(digest), "blob")
}

// has asks whether something is there over a connection of its own, which a load balancer may make to
// another replica each time.
func (c *Client) has(ctx context.Context, repository, path, what string) (bool, error) {
	err := c.authorized(ctx, c.fresh, repository, ggcr.PullScope, http.MethodHead, path, http.StatusOK)
	if err = c.explain(ctx, err, "say whether it has a "+what+" in "+repository); errors.Is(err, content.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// DeleteBlob deletes a blob, and what the registry remembers of it. It may answer with an
// error and do it all the same.
func (c *Client) DeleteBlob(ctx context.Context, repository string, digest content.Digest) error {
	err := c.authorized(ctx, c.transport, repository, ggcr.DeleteScope, http.MethodDelete, "/blobs/"+string(digest),
		http.StatusAccepted, http.StatusNotFound, http.StatusInternalServerError)
	return c.explain(ctx, err, "delete a blob in "+repository)
}

// authorized makes a request about a repository, whose answer counts by its status only.
func (c *Client) authorized(ctx context.Context, by *transport, repository, scope, method, path string, expected ...int) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	repo := c.registry.Repo(repository)
	via, err := ggcr.NewWithContext(ctx, c.registry, c.auth, by, []string{repo.Scope(scope)})
	if err != nil {
		return err
	}
	return c.do(ctx, via, method, "/v2/"+repository+path, expected...)
}
