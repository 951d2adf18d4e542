// Package content has the words of the janitor: what a registry holds, and how
// to read it.
package content

import (
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
	jsonv1 "github.com/go-json-experiment/json/v1"
)

// Manifest is what a manifest names.
type Manifest struct {
	Digest   Digest
	Bytes    int64     // its own
	Blobs    []Blob    // configs and layers that the registry stores; the config first
	Children []Digest  // manifests inside an index
	Kind     MediaType // as it says itself, or as the registry says
	Of       Kind
	Config   Digest // of an image; empty: there is none
	Subject  Digest // that it refers to (OCI image-spec, "subject"); empty: none
	// Foreign are layers that live at URLs. A registry may have them all the same.
	Foreign []Digest
}

// Kind is what a manifest is of.
type Kind string

// The kinds.
const (
	Image    Kind = "image"
	Index    Kind = "index" // of several images
	Cache    Kind = "cache" // that BuildKit exported, in either of its forms
	Referrer Kind = "referrer"
	Artifact Kind = "artifact"
)

// cacheConfig is the media type of the configuration of BuildKit's caches.
const cacheConfig MediaType = "application/vnd.buildkit.cacheconfig.v0"

// imageConfigs are the media types of the configurations of images.
var imageConfigs = []MediaType{"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}

// kindOf tells what a manifest is of.
func kindOf(doc document) Kind {
	isCache := func(d descriptor) bool { return d.MediaType == cacheConfig }
	switch {
	case doc.Subject != nil:
		return Referrer
	case doc.Manifests != nil && slices.ContainsFunc(*doc.Manifests, isCache), doc.Config != nil && isCache(*doc.Config):
		return Cache
	case doc.Manifests != nil:
		return Index
	case doc.ArtifactType == "" && doc.Config != nil && (doc.Config.MediaType == "" || slices.Contains(imageConfigs, doc.Config.MediaType)):
		return Image
	default:
		return Artifact
	}
}

// MediaType is the type of a manifest or blob.
type MediaType string

// The media types of manifests.
const (
	OCIManifest    MediaType = "application/vnd.oci.image.manifest.v1+json"
	OCIIndex       MediaType = "application/vnd.oci.image.index.v1+json"
	DockerManifest MediaType = "application/vnd.docker.distribution.manifest.v2+json"
	DockerList     MediaType = "application/vnd.docker.distribution.manifest.list.v2+json"
	OCIArtifact    MediaType = "application/vnd.oci.artifact.manifest.v1+json"
)

// IsManifest says whether bytes of this type are a manifest.
func (m MediaType) IsManifest() bool {
	return slices.Contains([]MediaType{OCIManifest, OCIIndex, DockerManifest, DockerList, OCIArtifact}, m)
}

// What can be wrong with a request to a registry, found with errors.Is.
var (
	ErrNotFound    = errors.New("the registry does not have it")
	ErrDenied      = errors.New("the registry does not allow it")
	ErrUnsupported = errors.New("the registry does not support it")
	ErrBroken      = errors.New("it cannot be read")
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
	Digest Digest   `json:"digest"`
	Size   int64    `json:"size"`
	URLs   []string `json:"urls"`
}

// document is every form of manifest at once.
type document struct {
	MediaType MediaType     `json:"mediaType"`
	Config    *descriptor   `json:"config"`
	Layers    *[]layer      `json:"layers"`
	Manifests *[]descriptor `json:"manifests"`
	Blobs     *[]layer      `json:"blobs"`
	Subject   *descriptor   `json:"subject"`

	ArtifactType string `json:"artifactType"`
}

// asRegistries are the semantics of encoding/json, which is what registries read manifests with;
// but for the words of errors, which take a look at the whole text beforehand.
var asRegistries = json.JoinOptions(jsonv1.DefaultOptionsV1(), jsonv1.ReportErrorsWithLegacySemantics(false))

// Parse reads a manifest. Served is the media type that the registry says, which
// counts when the manifest does not say its own.
func Parse(digest Digest, served MediaType, raw []byte) (Manifest, error) {
	var doc document
	if err := json.Unmarshal(raw, &doc, asRegistries); err != nil {
		return Manifest{}, fmt.Errorf("%w: manifest %s of %d bytes is no JSON object: %w", ErrBroken, digest, len(raw), err)
	}
	if doc.Layers == nil && doc.Manifests == nil && doc.Blobs == nil {
		return Manifest{}, fmt.Errorf("%w: manifest %s names neither layers nor manifests", ErrBroken, digest)
	}
	m := Manifest{Digest: digest, Bytes: int64(len(raw)), Kind: doc.MediaType, Of: kindOf(doc)}
	if doc.Subject != nil {
		if !doc.Subject.Digest.Valid() {
			return Manifest{}, fmt.Errorf("%w: manifest %s has subject %q, which cannot be", ErrBroken, digest, doc.Subject.Digest)
		}
		m.Subject = doc.Subject.Digest
	}
	if doc.Config != nil {
		m.Config = doc.Config.Digest
	}
	if m.Kind == "" {
		m.Kind = served
	}
	err := doc.each(func(d layer, child bool) error {
		b := NewBlob(d.Digest, d.Size)
		if !b.valid() || d.Size < 0 {
			return fmt.Errorf("%w: manifest %s names %q of %d bytes, which cannot be", ErrBroken, digest, d.Digest, d.Size)
		}
		switch {
		case child:
			m.Children = append(m.Children, d.Digest)
		case len(d.URLs) > 0:
			m.Foreign = append(m.Foreign, d.Digest)
		default:
			if m.Blobs == nil {
				m.Blobs = make([]Blob, 0, doc.blobs())
			}
			m.Blobs = append(m.Blobs, b)
		}
		return nil
	})
	if err != nil {
		return Manifest{}, err
	}
	return m, nil
}

// each calls do for all that the document names, until it fails; child says that it is a
// manifest. What an index lists need not be manifests: the older form of BuildKit's cache lists
// layers there.
func (d document) each(do func(_ layer, child bool) error) error {
	if d.Config != nil {
		if err := do(d.Config.layer(), false); err != nil {
			return err
		}
	}
	for _, list := range []*[]layer{d.Layers, d.Blobs} {
		if list == nil {
			continue
		}
		for _, one := range *list {
			if err := do(one, false); err != nil {
				return err
			}
		}
	}
	if d.Manifests == nil {
		return nil
	}
	for _, one := range *d.Manifests {
		if err := do(one.layer(), one.MediaType == "" || one.MediaType.IsManifest()); err != nil {
			return err
		}
	}
	return nil
}

func (d descriptor) layer() layer { return layer{d.Digest, d.Size, d.URLs} }

// blobs is how many blobs the document names at most.
func (d document) blobs() int {
	n := 1
	for _, list := range []*[]layer{d.Layers, d.Blobs} {
		if list != nil {
			n += len(*list)
		}
	}
	if d.Manifests != nil {
		n += len(*d.Manifests)
	}
	return n
}
