package buildkit

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/outcome"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// showFetch is how often a fetch tells how far it has come.
const showFetch = 250 * time.Millisecond

// fetch fetches the archives among the contexts of a spec, as steps of the build,
// and returns the spec with what they hold in their place.
func (r *run) fetch(ctx context.Context, spec build.Spec) (_ build.Spec, err error) {
	if spec.Context, err = r.fetched(ctx, spec.Project, spec.Context); err != nil {
		return spec, err
	}
	spec.NamedContexts = maps.Clone(spec.NamedContexts)
	for _, name := range slices.Sorted(maps.Keys(spec.NamedContexts)) {
		if spec.NamedContexts[name], err = r.fetched(ctx, spec.Project, spec.NamedContexts[name]); err != nil {
			return spec, err
		}
	}
	return spec, nil
}

func (r *run) fetched(ctx context.Context, project string, c build.Context) (build.Context, error) {
	if c.HTTP == nil {
		return c, nil
	}
	started := time.Now()
	step := client.Vertex{Name: outcome.FetchStep + bare(c.HTTP.URL), Digest: digest.FromString(c.HTTP.URL), Started: &started}
	r.update(&client.SolveStatus{Vertexes: []*client.Vertex{&step}})
	info, err := r.download(ctx, project, *c.HTTP, step.Digest)
	ended, now := step, time.Now()
	ended.Completed = &now
	if err != nil {
		ended.Error = err.Error()
	}
	r.update(&client.SolveStatus{Vertexes: []*client.Vertex{&ended}})
	return build.Context{Uploaded: &build.UploadedContext{Digest: info.Digest}}, err
}

// download fetches an archive into the store of contexts, which bounds how long that
// may take, and tells how far it has come.
func (r *run) download(
	ctx context.Context, project string, from build.HTTPContext, step digest.Digest,
) (contextstore.Info, error) {
	type answer struct {
		info contextstore.Info
		err  error
	}
	var moved counter
	done := make(chan answer, 1)
	go func() {
		var info contextstore.Info
		err := lifecycle.Protect(ctx, func(ctx context.Context) (err error) {
			client := moved.watch(r.daemon.opts.Guard.Client(0))
			info, err = r.daemon.opts.Contexts.Fetch(ctx, client, project, from.URL, from.Digest)
			return err
		})
		done <- answer{info, err}
	}()
	started := time.Now()
	tick := time.NewTicker(showFetch)
	defer tick.Stop()
	for {
		select {
		case end := <-done:
			return end.info, end.err
		case now := <-tick.C:
			r.update(&client.SolveStatus{Statuses: []*client.VertexStatus{{
				ID: "archive", Vertex: step, Current: moved.current.Load(), Total: moved.total.Load(), Timestamp: now, Started: &started,
			}}})
		}
	}
}

// bare is a URL's host and path: what may be shown of it.
func bare(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "an archive"
	}
	return u.Host + u.EscapedPath()
}

// counter counts the bytes of the last answer that a client has got.
type counter struct{ current, total atomic.Int64 }

// watch returns the client with its answers counted.
func (c *counter) watch(of *http.Client) *http.Client {
	watched := *of
	watched.Transport = counting{of.Transport, c}
	return &watched
}

type counting struct {
	http.RoundTripper
	counter *counter
}

// RoundTrip implements http.RoundTripper.
func (c counting) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := c.RoundTripper.RoundTrip(req)
	if err == nil {
		c.counter.current.Store(0)
		c.counter.total.Store(max(0, res.ContentLength))
		res.Body = countedBody{res.Body, c.counter}
	}
	return res, err
}

type countedBody struct {
	io.ReadCloser
	counter *counter
}

// Read implements io.Reader.
func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.counter.current.Add(int64(n))
	return n, err
}
