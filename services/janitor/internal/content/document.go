package content

import (
	"fmt"
	"slices"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"
)

// descriptor is a reference inside a manifest.
type descriptor struct {
	MediaType MediaType `json:"mediaType"`
	Digest    Digest    `json:"digest"`
	Size      int64     `json:"size"`
	URLs      []string  `json:"urls"`
}

// layer is one whose media type says nothing here: most of a manifest.
type layer struct {
	Digest digestOf `json:"digest"`
	Size   int64    `json:"size"`
	URLs   []string `json:"urls"`
}

func (d descriptor) layer() layer { return layer{digestOf{NewBlob(d.Digest, 0)}, d.Size, d.URLs} }

func (l layer) blob() Blob {
	b := l.Digest.Blob
	b.Bytes = l.Size
	return b
}

// digestOf is the digest of a blob, read without a string for it.
type digestOf struct{ Blob }

// UnmarshalJSONFrom reads a digest as it reads a string.
func (d *digestOf) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	raw, err := dec.ReadValue()
	if err != nil {
		return err
	}
	const begin = `"` + sha256
	if len(raw) > len(begin) && string(raw[:len(begin)]) == begin {
		if sum, is := SumOf(raw[len(begin) : len(raw)-1]); is && sum != (Sum{}) {
			d.Blob = Blob{sum: sum}
			return nil
		}
	}
	if raw.Kind() == 'n' {
		return nil // null changes nothing
	}
	var text Digest
	err = json.Unmarshal(raw, &text, asRegistries)
	d.Blob = NewBlob(text, 0)
	return err
}

// list is one that tells an empty list from none, and is used again.
type list[T any] struct {
	there bool
	all   []T
}

// UnmarshalJSONFrom reads a list as it reads a pointer to one.
func (l *list[T]) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	if dec.PeekKind() == 'n' {
		l.reset()
		return dec.SkipValue()
	}
	l.there = true
	return json.UnmarshalDecode(dec, &l.all)
}

// reset empties the list also of what an element that says less would keep.
func (l *list[T]) reset() {
	clear(l.all[:cap(l.all)])
	*l = list[T]{all: l.all[:0]}
}

// document is every form of manifest at once.
type document struct {
	MediaType MediaType        `json:"mediaType"`
	Config    *descriptor      `json:"config"`
	Layers    list[layer]      `json:"layers"`
	Manifests list[descriptor] `json:"manifests"`
	Blobs     list[layer]      `json:"blobs"`
	Subject   *descriptor      `json:"subject"`

	ArtifactType  string `json:"artifactType"`
	SchemaVersion int    `json:"schemaVersion"`
	// FSLayers are the layers of Docker's image manifest, version 2, schema 1.
	FSLayers []fsLayer `json:"fsLayers"`
}

// fsLayer is a layer of a manifest of schema 1, which does not say its size.
type fsLayer struct {
	BlobSum Digest `json:"blobSum"`
}

// documents are used again: the lists of a large registry's would be most of what a look at it
// throws away.
var documents = sync.Pool{New: func() any { return new(document) }}

// mostKept is how many blobs a document names at most that is used again.
const mostKept = 1000

func (d *document) giveBack() {
	if d.blobs() > mostKept {
		return
	}
	d.Layers.reset()
	d.Manifests.reset()
	d.Blobs.reset()
	*d = document{Layers: d.Layers, Manifests: d.Manifests, Blobs: d.Blobs}
	documents.Put(d)
}

// asRegistries are the semantics of encoding/json, which is what registries read manifests with;
// but for the words of errors, which take a look at the whole text beforehand.
var asRegistries = json.JoinOptions(jsonv1.DefaultOptionsV1(), jsonv1.ReportErrorsWithLegacySemantics(false))

// Parse reads a manifest. Served is the media type that the registry says, which
// counts when the manifest does not say its own.
func Parse(digest Digest, served MediaType, raw []byte) (Manifest, error) {
	doc, _ := documents.Get().(*document)
	defer doc.giveBack()
	if err := json.Unmarshal(raw, doc, asRegistries); err != nil {
		return Manifest{}, fmt.Errorf("%w: manifest %s of %d bytes is no JSON object: %w", ErrBroken, digest, len(raw), err)
	}
	if !doc.known() {
		return Manifest{}, fmt.Errorf("%w: manifest %s has an unknown type and names neither layers nor manifests", ErrBroken, digest)
	}
	m := Manifest{
		Digest: digest, Bytes: int64(len(raw)), Kind: doc.MediaType.shared(), Of: kindOf(doc), Configured: doc.Config != nil && doc.Config.Digest != "",
	}
	if doc.Subject != nil && doc.Subject.Digest.Valid() { // no manifest has another one
		m.Subject = doc.Subject.Digest
	}
	if m.Kind == "" {
		m.Kind = served
	}
	if err := doc.each(func(d layer, of role) error { return m.add(doc, d, of) }); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

// add notes a reference. One without a digest names nothing, and one that says a size which
// cannot be says none.
func (m *Manifest) add(doc *document, d layer, of role) error {
	b := d.blob()
	switch {
	case b.Digest() == "":
		return nil
	case !b.valid():
		return fmt.Errorf("%w: manifest %s names %q, which is no digest", ErrBroken, m.Digest, b.Digest())
	}
	b.Bytes = max(0, b.Bytes)
	switch {
	case of == child:
		m.Children = append(m.Children, b.Digest())
	case of != config && len(d.URLs) > 0:
		m.Foreign = append(m.Foreign, b.Digest())
	default:
		if m.Blobs == nil {
			m.Blobs = make([]Blob, 0, doc.blobs())
		}
		m.Blobs = append(m.Blobs, b)
	}
	return nil
}

// known reports whether the document has a form that the registry takes. What such a document
// leaves out, or has as null, names nothing.
func (d *document) known() bool {
	switch {
	case d.MediaType != "":
		return d.MediaType.IsManifest()
	case d.Layers.there, d.Manifests.there, d.Blobs.there, d.FSLayers != nil:
		return true
	}
	return d.SchemaVersion == 2
}

// role is what a reference is to.
type role int

// The roles.
const (
	config role = iota
	bytesOf
	child
)

// cacheConfig is the media type of the configuration of BuildKit's caches.
const cacheConfig MediaType = "application/vnd.buildkit.cacheconfig.v0"

// imageConfigs are the media types of the configurations of images.
var imageConfigs = []MediaType{"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}

// kindOf tells what a manifest is of.
func kindOf(doc *document) Kind {
	isCache := func(d descriptor) bool { return d.MediaType == cacheConfig }
	switch {
	case doc.Subject != nil && doc.Subject.Digest.Valid():
		return Referrer
	case slices.ContainsFunc(doc.Manifests.all, isCache), doc.Config != nil && isCache(*doc.Config):
		return Cache
	case doc.FSLayers != nil:
		return Image
	case doc.Manifests.there, doc.MediaType == OCIIndex, doc.MediaType == DockerList:
		return Index
	case doc.ArtifactType == "" && doc.Config != nil && (doc.Config.MediaType == "" || slices.Contains(imageConfigs, doc.Config.MediaType)):
		return Image
	default:
		return Artifact
	}
}

// each calls do for all that the document names, until it fails. What an index lists need not be
// manifests: the older form of BuildKit's cache lists layers there.
func (d *document) each(do func(_ layer, of role) error) error {
	if d.Config != nil {
		if err := do(d.Config.layer(), config); err != nil {
			return err
		}
	}
	for _, all := range [][]layer{d.Layers.all, d.Blobs.all} {
		for _, one := range all {
			if err := do(one, bytesOf); err != nil {
				return err
			}
		}
	}
	for _, one := range d.FSLayers {
		if err := do(descriptor{Digest: one.BlobSum}.layer(), bytesOf); err != nil {
			return err
		}
	}
	for _, one := range d.Manifests.all {
		of := bytesOf
		if one.MediaType == "" || one.MediaType.IsManifest() {
			of = child
		}
		if err := do(one.layer(), of); err != nil {
			return err
		}
	}
	return nil
}

// blobs is how many blobs the document names at most.
func (d *document) blobs() int {
	return 1 + len(d.Layers.all) + len(d.Blobs.all) + len(d.Manifests.all) + len(d.FSLayers)
}
