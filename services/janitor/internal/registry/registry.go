// Package registry is the janitor's only way to the API of a registry.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// atOnce is how many requests are sent to the registry at the same time.
const atOnce = 8

// requestTimeout bounds one question, all its pages and retries included.
const requestTimeout = 2 * time.Minute

// Client asks one registry.
type Client struct {
	registry  name.Registry
	auth      *credentials
	transport *transport
	fresh     *transport // with a connection for each request
	slots     chan struct{}

	mu      sync.Mutex
	puller  *remote.Puller
	renewed time.Time
}

// New returns a client of the registry of the configuration. Nothing is asked yet.
func New(cfg *configv1.RegistryConfig, tel *telemetry.Telemetry) (*Client, error) {
	var opts []name.Option
	if cfg.GetPlainHttp() {
		opts = append(opts, name.Insecure)
	}
	registry, err := name.NewRegistry(cfg.GetAddress(), opts...)
	if err != nil {
		return nil, fmt.Errorf("registry.address %q is no host and port: %w", cfg.GetAddress(), err)
	}
	auth, err := newCredentials(cfg)
	if err != nil {
		return nil, err
	}
	roots, err := authorities(cfg.GetCaFile())
	if err != nil {
		return nil, err
	}
	return &Client{
		registry: registry, auth: auth, slots: make(chan struct{}, atOnce),
		transport: newTransport(registry.RegistryStr(), registry.Scheme(), cfg.GetPlainHttp(), roots, tel, false),
		fresh:     newTransport(registry.RegistryStr(), registry.Scheme(), cfg.GetPlainHttp(), roots, tel, true),
	}, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Address is host and port.
func (c *Client) Address() string { return c.registry.RegistryStr() }

// User is who the janitor is at the registry. Empty: anonymous.
func (c *Client) User() string { return c.auth.username }

// Repositories lists the catalogue.
func (c *Client) Repositories(ctx context.Context) (names []string, err error) {
	err = c.ask(ctx, "list its repositories", func(ctx context.Context, puller *remote.Puller) error {
		pages, err := puller.Catalogger(ctx, c.registry)
		if err != nil {
			return err
		}
		for pages.HasNext() {
			page, err := pages.Next(ctx)
			if err != nil {
				return err
			}
			names = append(names, page.Repos...)
		}
		return nil
	})
	return names, err
}

// FirstRepositories lists the first of the catalogue.
func (c *Client) FirstRepositories(ctx context.Context, most int) (names []string, err error) {
	bounded, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	names, err = remote.CatalogPage(c.registry, "", most, remote.WithContext(bounded), remote.WithTransport(c.transport), remote.WithAuth(c.auth))
	return names, c.explain(ctx, err, "list its repositories")
}

// Tags lists the tags of a repository. It is content.ErrNotFound for a repository
// without any, or that is gone.
func (c *Client) Tags(ctx context.Context, repository string) (tags []string, err error) {
	err = c.ask(ctx, "list the tags of "+repository, func(ctx context.Context, puller *remote.Puller) error {
		tags, err = puller.List(ctx, c.registry.Repo(repository))
		return err
	})
	return tags, err
}

// Resolve is the digest of the manifest that a tag holds.
func (c *Client) Resolve(ctx context.Context, repository, tag string) (digest content.Digest, err error) {
	err = c.ask(ctx, "resolve "+repository+":"+tag, func(ctx context.Context, puller *remote.Puller) error {
		desc, err := puller.Head(ctx, c.registry.Repo(repository).Tag(tag))
		if err == nil {
			digest = content.Digest(desc.Digest.String())
		}
		return err
	})
	return digest, err
}

// Manifest reads the manifest with a digest, which is verified.
func (c *Client) Manifest(ctx context.Context, repository string, digest content.Digest) (m content.Manifest, err error) {
	var desc *remote.Descriptor
	err = c.ask(ctx, fmt.Sprintf("send manifest %s@%s", repository, digest), func(ctx context.Context, puller *remote.Puller) error {
		desc, err = puller.Get(ctx, c.registry.Repo(repository).Digest(string(digest)))
		return err
	})
	if err != nil {
		return content.Manifest{}, err
	}
	return content.Parse(digest, content.MediaType(desc.MediaType), desc.Manifest)
}

// maxConfig bounds the configuration of an image.
const maxConfig = 4 << 20

// Created reads when what a configuration is of was made. The zero time: it does not say.
func (c *Client) Created(ctx context.Context, repository string, config content.Digest) (at time.Time, err error) {
	var raw []byte
	err = c.ask(ctx, fmt.Sprintf("send configuration %s@%s", repository, config), func(ctx context.Context, puller *remote.Puller) error {
		layer, err := puller.Layer(ctx, c.registry.Repo(repository).Digest(string(config)))
		if err != nil {
			return err
		}
		in, err := layer.Compressed() // which verifies the digest at its end
		if err != nil {
			return err
		}
		raw, err = io.ReadAll(io.LimitReader(in, maxConfig))
		return errors.Join(err, in.Close())
	})
	var says struct {
		Created time.Time `json:"created"`
	}
	if err != nil || json.Unmarshal(raw, &says) != nil { // it may be of any type
		return time.Time{}, err
	}
	return says.Created, nil
}

// ask makes a request in its turn, and bounds it.
func (c *Client) ask(ctx context.Context, doing string, request func(context.Context, *remote.Puller) error) error {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.slots }()
	puller, err := c.pull()
	if err != nil {
		return c.explain(ctx, err, doing)
	}
	bounded, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return c.explain(ctx, request(bounded, puller), doing)
}

// pullerAge is how long what the library knows of the registry's authentication
// is used.
const pullerAge = time.Minute

func (c *Client) pull() (*remote.Puller, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.puller != nil && time.Since(c.renewed) < pullerAge {
		return c.puller, nil
	}
	puller, err := remote.NewPuller(
		remote.WithTransport(c.transport), remote.WithAuth(c.auth),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 2}),
	)
	if err != nil {
		return nil, err
	}
	c.puller, c.renewed = puller, time.Now()
	return puller, nil
}

// Ping asks for an answer, also one that demands credentials.
func (c *Client) Ping(ctx context.Context) error {
	err := c.do(ctx, c.transport, http.MethodGet, "/v2/", http.StatusOK, http.StatusUnauthorized)
	return c.explain(ctx, err, "answer at /v2/")
}

// Login asks for an answer with the credentials there are.
func (c *Client) Login(ctx context.Context) error {
	authorized, err := ggcr.NewWithContext(ctx, c.registry, c.auth, c.transport, nil)
	if err == nil {
		err = c.do(ctx, authorized, http.MethodGet, "/v2/", http.StatusOK)
	}
	return c.explain(ctx, err, "log the janitor in")
}

// What TryDelete asks to delete. The digest is that of the words
// "kiln: no manifest has this digest", so none has.
const (
	probeRepository = "kiln-janitor/delete-check"
	probeDigest     = "sha256:8ad68e333ae61013dbe1bba41ddb49c58fedc71d68092e2bf4f3eb2bfce41e67"
)

// TryDelete implements check.Registry. It asks to delete a manifest that does not
// exist from a repository that does not exist. A registry that allows deletes
// says that it knows neither; one that does not, says so first.
func (c *Client) TryDelete(ctx context.Context) error {
	repository := c.registry.Repo(probeRepository)
	authorized, err := ggcr.NewWithContext(ctx, c.registry, c.auth, c.transport, []string{repository.Scope(ggcr.DeleteScope)})
	if err == nil {
		err = c.do(ctx, authorized, http.MethodDelete, "/v2/"+probeRepository+"/manifests/"+probeDigest,
			http.StatusAccepted, http.StatusNotFound)
	}
	return c.explain(ctx, err, "allow deletes")
}

// maxBody bounds what is read of an answer, so that its connection can be used
// again.
const maxBody = 64 << 10

// accepted are the types of what is asked for: without them a registry has no OCI manifest.
var accepted = strings.Join([]string{
	string(content.OCIManifest), string(content.OCIIndex), string(content.DockerManifest), string(content.DockerList), "*/*",
}, ", ")

// do sends a request whose answer counts by its status only: any but the
// expected ones is an error.
func (c *Client) do(ctx context.Context, via http.RoundTripper, method, path string, expected ...int) (err error) {
	resp, err := c.get(ctx, via, method, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drain(resp)) }()
	return ggcr.CheckError(resp, expected...)
}

// get sends a request, and follows no redirect.
func (c *Client) get(ctx context.Context, via http.RoundTripper, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.registry.Scheme()+"://"+c.registry.RegistryStr()+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accepted)
	client := &http.Client{Transport: via, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return client.Do(req)
}

// drain reads the rest of an answer and closes it.
func drain(resp *http.Response) error {
	_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
	return errors.Join(err, resp.Body.Close())
}
