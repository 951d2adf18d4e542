package local

import (
	"encoding/json"
	"errors"
	"os"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// configType is the media type of the configuration of a cache, which says what step
// each layer is the result of.
const configType = "application/vnd.buildkit.cacheconfig.v0"

// cacheConfig is the configuration of a cache, as BuildKit writes it
// (cache/remotecache/v1/types): the layers with the one that each is made upon, and the
// steps with the layers that are their results.
type cacheConfig struct {
	Layers  []cacheLayer  `json:"layers,omitempty"`
	Records []cacheRecord `json:"records,omitempty"`
}

type cacheLayer struct {
	Blob        digest.Digest   `json:"blob,omitempty"`
	Parent      int             `json:"parent,omitempty"` // -1: none
	Annotations json.RawMessage `json:"annotations,omitempty"`
}

type cacheRecord struct {
	Results []cacheResult   `json:"layers,omitempty"`
	Chains  []cacheChain    `json:"chains,omitempty"`
	Digest  digest.Digest   `json:"digest,omitempty"`
	Inputs  json.RawMessage `json:"inputs,omitempty"`
}

type cacheResult struct {
	Layer     int             `json:"layer"`
	CreatedAt json.RawMessage `json:"createdAt,omitempty"`
}

type cacheChain struct {
	Layers    []int           `json:"layers"`
	CreatedAt json.RawMessage `json:"createdAt,omitempty"`
}

// errNotCache says that a manifest is not that of a cache, and so cannot be made
// smaller.
var errNotCache = errors.New("it is not the manifest of a cache")

// build is a cache in its parts: a manifest, in one of its two forms, and the
// configuration.
type build struct {
	mediaType string
	image     *ocispecs.Manifest // the form with image-manifest=true
	index     *ocispecs.Index    // the other
	config    cacheConfig
}

// readCache reads the cache of a manifest.
func readCache(root *os.Root, m ocispecs.Descriptor) (*build, error) {
	body, err := readBlob(root, m.Digest)
	if err != nil {
		return nil, err
	}
	b := &build{mediaType: m.MediaType}
	var config *ocispecs.Descriptor
	if m.MediaType == ocispecs.MediaTypeImageManifest {
		b.image = &ocispecs.Manifest{}
		err = json.Unmarshal(body, b.image)
		config = &b.image.Config
	} else {
		b.index = &ocispecs.Index{}
		err = json.Unmarshal(body, b.index)
		for i := range b.index.Manifests {
			if b.index.Manifests[i].MediaType == configType {
				config = &b.index.Manifests[i]
			}
		}
	}
	if err != nil {
		return nil, errors.Join(errBad, err)
	}
	if config == nil || config.MediaType != configType {
		return nil, errNotCache
	}
	if body, err = readBlob(root, config.Digest); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, &b.config); err != nil {
		return nil, errors.Join(errBad, err)
	}
	for _, l := range b.config.Layers {
		if l.Parent >= len(b.config.Layers) {
			return nil, errBad
		}
	}
	return b, nil
}

// layers are the descriptors of the layers by digest.
func (b *build) layers() map[digest.Digest]ocispecs.Descriptor {
	all := map[digest.Digest]ocispecs.Descriptor{}
	for _, l := range b.list() {
		if l.MediaType != configType {
			all[l.Digest] = l
		}
	}
	return all
}

func (b *build) list() []ocispecs.Descriptor {
	if b.image != nil {
		return b.image.Layers
	}
	return b.index.Manifests
}

// without takes blobs out, with all layers that are made upon them and all results that
// have one of these, and reports whether a layer is left. Steps stay without their
// results: BuildKit then runs them, and finds those that follow if their input is the
// same.
func (b *build) without(gone map[digest.Digest]bool) bool {
	place := make([]int, len(b.config.Layers)) // in the new list; -1: gone
	var kept []cacheLayer
	left := map[digest.Digest]bool{}
	stays := func(i int) bool {
		for steps := 0; i >= 0; i, steps = b.config.Layers[i].Parent, steps+1 {
			if gone[b.config.Layers[i].Blob] || steps > len(b.config.Layers) {
				return false
			}
		}
		return true
	}
	for i := range b.config.Layers {
		place[i] = -1
		if stays(i) {
			place[i] = len(kept)
			kept = append(kept, b.config.Layers[i])
			left[b.config.Layers[i].Blob] = true
		}
	}
	for i := range kept {
		if kept[i].Parent >= 0 {
			kept[i].Parent = place[kept[i].Parent]
		}
	}
	there := func(i int) bool { return i >= 0 && i < len(place) && place[i] >= 0 }
	for i := range b.config.Records {
		b.config.Records[i] = b.config.Records[i].with(place, there)
	}
	b.config.Layers = kept
	b.keep(left)
	return len(kept) > 0
}

// with is the record with the results that are left, in their new places.
func (r cacheRecord) with(place []int, there func(int) bool) cacheRecord {
	var results []cacheResult
	for _, result := range r.Results {
		if there(result.Layer) {
			result.Layer = place[result.Layer]
			results = append(results, result)
		}
	}
	var chains []cacheChain
next:
	for _, chain := range r.Chains {
		moved := make([]int, len(chain.Layers))
		for i, layer := range chain.Layers {
			if !there(layer) {
				continue next
			}
			moved[i] = place[layer]
		}
		chain.Layers = moved
		chains = append(chains, chain)
	}
	r.Results, r.Chains = results, chains
	return r
}

// keep leaves only these layers in the manifest.
func (b *build) keep(left map[digest.Digest]bool) {
	var kept []ocispecs.Descriptor
	for _, l := range b.list() {
		if left[l.Digest] || l.MediaType == configType {
			kept = append(kept, l)
		}
	}
	if b.image != nil {
		b.image.Layers = kept
	} else {
		b.index.Manifests = kept
	}
}

// write writes the configuration and the manifest, and returns the descriptor of this,
// which has the names of the one before.
func (b *build) write(root *os.Root, before ocispecs.Descriptor) (ocispecs.Descriptor, error) {
	config, err := writeBlob(root, b.config, configType)
	if err != nil {
		return config, err
	}
	var body any = b.index
	if b.image != nil {
		b.image.Config = config
		body = b.image
	} else {
		for i := range b.index.Manifests {
			if b.index.Manifests[i].MediaType == configType {
				b.index.Manifests[i] = config
			}
		}
	}
	after, err := writeBlob(root, body, b.mediaType)
	after.Annotations = before.Annotations
	return after, err
}

// writeBlob writes a blob of JSON.
func writeBlob(root *os.Root, value any, mediaType string) (ocispecs.Descriptor, error) {
	body, err := json.Marshal(value)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	d := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if _, err := root.Lstat(blobPath(d.Digest)); err == nil {
		return d, nil
	}
	const prepared = ownDir + "/blob"
	as, err := newAccess(root, 0o444)
	if err == nil {
		err = replace(root, prepared, as, body, toDisk)
	}
	if err != nil {
		return d, err
	}
	return d, root.Rename(prepared, blobPath(d.Digest))
}
