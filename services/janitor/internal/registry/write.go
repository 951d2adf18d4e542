package registry

import (
	"context"
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
	err := c.authorized(ctx, repository, ggcr.DeleteScope, http.MethodDelete, "/manifests/"+string(digest), http.StatusAccepted, http.StatusNotFound)
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

// HasBlob reports whether the registry says that it has a blob.
func (c *Client) HasBlob(ctx context.Context, repository string, digest content.Digest) (bool, error) {
	err := c.authorized(ctx, repository, ggcr.PullScope, http.MethodHead, "/blobs/"+string(digest), http.StatusOK)
	if err = c.explain(ctx, err, "say whether it has a blob in "+repository); errors.Is(err, content.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// DeleteBlob deletes a blob, and what the registry remembers of it. It may answer with an
// error and do it all the same.
func (c *Client) DeleteBlob(ctx context.Context, repository string, digest content.Digest) error {
	err := c.authorized(ctx, repository, ggcr.DeleteScope, http.MethodDelete, "/blobs/"+string(digest), http.StatusAccepted, http.StatusNotFound, http.StatusInternalServerError)
	return c.explain(ctx, err, "delete a blob in "+repository)
}

// authorized makes a request about a repository, whose answer counts by its status only.
func (c *Client) authorized(ctx context.Context, repository, scope, method, path string, expected ...int) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	repo := c.registry.Repo(repository)
	via, err := ggcr.NewWithContext(ctx, c.registry, c.auth, c.transport, []string{repo.Scope(scope)})
	if err != nil {
		return err
	}
	return c.do(ctx, via, method, "/v2/"+repository+path, expected...)
}
