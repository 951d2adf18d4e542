// Package content has the words of the janitor: what a registry holds, and how
// to read it.
package content

import (
	"errors"
	"iter"
	"slices"
)

// Manifest is what a manifest names.
type Manifest struct {
	Digest   Digest
	Bytes    int64     // its own
	Blobs    []Blob    // configs and layers that the registry stores; the config first
	Children []Digest  // manifests inside an index
	Kind     MediaType // as it says itself, or as the registry says
	Of       Kind
	Subject  Digest // that it refers to (OCI image-spec, "subject"); empty: none
	// Configured says that the first of its blobs is its configuration.
	Configured bool
	// Foreign are layers that live at URLs. A registry may have them all the same.
	Foreign []Digest
}

// Layers are all blobs that it names, also those that live at URLs too, without their sizes.
func (m *Manifest) Layers() iter.Seq[Blob] {
	return func(yield func(Blob) bool) {
		for _, b := range m.Blobs {
			b.Bytes = 0
			if !yield(b) {
				return
			}
		}
		for _, d := range m.Foreign {
			if !yield(NewBlob(d, 0)) {
				return
			}
		}
	}
}

// Config is the digest of its configuration; empty: it has none.
func (m *Manifest) Config() Digest {
	if !m.Configured {
		return ""
	}
	return m.Blobs[0].Digest()
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

// MediaType is the type of a manifest or blob.
type MediaType string

// The media types of manifests.
const (
	OCIManifest    MediaType = "application/vnd.oci.image.manifest.v1+json"
	OCIIndex       MediaType = "application/vnd.oci.image.index.v1+json"
	DockerManifest MediaType = "application/vnd.docker.distribution.manifest.v2+json"
	DockerList     MediaType = "application/vnd.docker.distribution.manifest.list.v2+json"
	OCIArtifact    MediaType = "application/vnd.oci.artifact.manifest.v1+json"
	// Of Docker's image manifest, version 2, schema 1: registries before distribution v3 took it.
	DockerSchema1       MediaType = "application/vnd.docker.distribution.manifest.v1+json"
	DockerSchema1Signed MediaType = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

var manifestTypes = []MediaType{
	OCIManifest, OCIIndex, DockerManifest, DockerList, OCIArtifact, DockerSchema1, DockerSchema1Signed,
}

// IsManifest says whether bytes of this type are a manifest.
func (m MediaType) IsManifest() bool { return slices.Contains(manifestTypes, m) }

// shared is the type in the memory of the constants, where it is one of these: a large registry
// has a hundred thousand.
func (m MediaType) shared() MediaType {
	if i := slices.Index(manifestTypes, m); i >= 0 {
		return manifestTypes[i]
	}
	return m
}

// What can be wrong with a request to a registry, found with errors.Is.
var (
	ErrNotFound    = errors.New("the registry does not have it")
	ErrDenied      = errors.New("the registry does not allow it")
	ErrUnsupported = errors.New("the registry does not support it")
	ErrBroken      = errors.New("it cannot be read")
)
