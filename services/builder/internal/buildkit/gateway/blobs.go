package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// blobs knows which blobs of a daemon's content belong to whom: those that the
// history records of a caller's own builds name, and those that manifests among them
// name. A digest alone does not say whose a blob is.
type blobs struct {
	reading singleflight.Group // of the history, by holder

	mu      sync.Mutex
	callers map[string]*holding // by holder; see call.holder
}

// holding is the blobs of one caller.
type holding struct {
	digests   map[string]bool
	manifests map[string]int64 // not read yet, with their sizes
	read      time.Time        // when the history was read for it
}

func newBlobs() *blobs { return &blobs{callers: make(map[string]*holding)} }

const (
	// maxHoldings bounds the callers whose blobs are remembered, and maxDigests how
	// many of each. What is forgotten is read again from the history.
	maxHoldings = 1000
	maxDigests  = 20_000
	// readAgain is how old what was read may be before an unknown digest has the
	// history read again.
	readAgain = time.Second
	// maxManifest bounds a manifest, and readBlobsWithin how long reading takes.
	maxManifest     = 4 << 20
	readBlobsWithin = 20 * time.Second
)

// add notes the blobs that a record of a caller names.
func (b *blobs) add(identity string, rec *controlapi.BuildHistoryRecord) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.of(identity)
	h.add(rec.GetLogs())
	h.add(rec.GetTrace())
	h.add(rec.GetExternalError())
	h.result(rec.GetResult())
	for _, result := range rec.GetResults() {
		h.result(result)
	}
}

func (b *blobs) of(identity string) *holding {
	h := b.callers[identity]
	if h == nil {
		if len(b.callers) >= maxHoldings {
			clear(b.callers)
		}
		h = &holding{digests: make(map[string]bool), manifests: make(map[string]int64)}
		b.callers[identity] = h
	}
	return h
}

func (h *holding) result(r *controlapi.BuildResultInfo) {
	h.add(r.GetResultDeprecated())
	for _, d := range r.GetAttestations() {
		h.add(d)
	}
	for _, d := range r.GetResults() {
		h.add(d)
	}
}

func (h *holding) add(d *controlapi.Descriptor) {
	h.name(d.GetDigest(), d.GetMediaType(), d.GetSize())
}

func (h *holding) name(digest, mediaType string, size int64) {
	if digest == "" || h.digests[digest] {
		return
	}
	if len(h.digests) >= maxDigests {
		clear(h.digests)
	}
	h.digests[digest] = true
	switch mediaType {
	case "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json":
		if size <= maxManifest {
			h.manifests[digest] = size
		}
	}
}

// has reports whether a blob is known to be a caller's, and when the caller's history
// was read last.
func (b *blobs) has(identity, digest string) (bool, time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.callers[identity]
	if h == nil {
		return false, time.Time{}
	}
	return h.digests[digest], h.read
}

// unread returns the caller's manifests that were not read yet.
func (b *blobs) unread(identity string) map[string]int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.of(identity)
	all := h.manifests
	h.manifests, h.read = make(map[string]int64), time.Now()
	return all
}

// children notes the blobs that a manifest of a caller names.
func (b *blobs) children(identity string, raw []byte) {
	type descriptor struct {
		Digest    string `json:"digest"`
		MediaType string `json:"mediaType"`
		Size      int64  `json:"size"`
	}
	var manifest struct {
		Manifests []descriptor `json:"manifests"`
		Layers    []descriptor `json:"layers"`
		Config    descriptor   `json:"config"`
	}
	if json.Unmarshal(raw, &manifest) != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.of(identity)
	for _, d := range append(append(manifest.Manifests, manifest.Layers...), manifest.Config) {
		h.name(d.Digest, d.MediaType, d.Size)
	}
}

// holder tells apart whose blobs are remembered: the caller under the rules of this
// call. Under others, which may be those of another method or of a changed policy, the
// caller may have fewer projects.
func (c *call) holder() string {
	return c.owner.identity + string(auth.GrantOf(c.Context()).Fingerprint())
}

// ownBlob returns NOT_FOUND, in containerd's words, unless a blob belongs to the
// caller.
func (g *Gateway) ownBlob(c *call, up *upstream, digest string) error {
	ctx := c.Context()
	if administers(ctx) {
		return nil
	}
	own, read := g.blobs.has(c.holder(), digest)
	if !own && time.Since(read) > readAgain {
		_, err, _ := g.blobs.reading.Do(c.holder(), func() (any, error) {
			return nil, g.readHoldings(context.WithoutCancel(ctx), c, up)
		})
		if err != nil {
			return err
		}
		own, _ = g.blobs.has(c.holder(), digest)
	}
	if !own {
		return status.Errorf(codes.NotFound, "content %s: not found", digest)
	}
	return nil
}

// readHoldings reads from the daemon's history, and from the manifests that it names,
// which blobs are a caller's.
func (g *Gateway) readHoldings(ctx context.Context, c *call, up *upstream) error {
	ctx, cancel := context.WithTimeout(ctx, readBlobsWithin)
	defer cancel()
	quiet := &ownHistory{gateway: g, call: c, up: up, header: true, known: make(map[string]bool)}
	none := func(*controlapi.BuildHistoryEvent) error { return nil }
	if err := quiet.each(ctx, &controlapi.BuildHistoryRequest{EarlyExit: true}, none); err != nil {
		return err
	}
	// An index names manifests, and these name no further ones.
	for range 3 {
		for digest, size := range g.blobs.unread(c.holder()) {
			raw, err := up.blob(ctx, digest, size)
			if err != nil {
				if status.Code(err) == codes.NotFound {
					continue // pruned
				}
				return err
			}
			g.blobs.children(c.holder(), raw)
		}
	}
	return nil
}

// blob reads a small blob of the daemon's content.
func (u *upstream) blob(ctx context.Context, digest string, size int64) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := contentapi.NewContentClient(u.Conn()).Read(ctx, &contentapi.ReadContentRequest{Digest: digest, Size: size}, grpc.MaxCallRecvMsgSize(maxMessage))
	var raw []byte
	for err == nil && len(raw) <= maxManifest {
		var part *contentapi.ReadContentResponse
		if part, err = stream.Recv(); err == nil {
			raw = append(raw, part.GetData()...)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return raw, nil
}

// blobInfo passes on what the daemon says of a blob of the caller.
func (g *Gateway) blobInfo(c *call) error {
	var req contentapi.InfoRequest
	up, request, err := g.forBlob(c, &req, req.GetDigest)
	if err != nil {
		return err
	}
	return up.unary(c.Context(), c, request)
}

// readBlob passes a blob of the caller on.
func (g *Gateway) readBlob(c *call) error {
	var req contentapi.ReadContentRequest
	up, request, err := g.forBlob(c, &req, req.GetDigest)
	if err != nil {
		return err
	}
	return up.answers(c.Context(), c, request)
}

func (g *Gateway) forBlob(c *call, req proto.Message, digest func() string) (*upstream, *rawcodec.Frame, error) {
	request, err := c.receive(req)
	if err != nil {
		return nil, nil, err
	}
	up, err := g.current(c.Context())
	if err != nil {
		return nil, nil, err
	}
	return up, request, g.ownBlob(c, up, digest())
}
