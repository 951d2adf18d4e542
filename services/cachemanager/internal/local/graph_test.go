package local

import (
	"os"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A manifest is followed also when it is named under a type that names nothing before.
func TestFollow_ManifestUnderTwoTypes(t *testing.T) {
	l := newLayout(t)
	cache := got(l.manifest("layer"))(t)
	alias := cache
	alias.MediaType = "application/octet-stream"
	for _, named := range [][]ocispecs.Descriptor{{cache, alias}, {alias, cache}} {
		index := got(l.json(ocispecs.Index{MediaType: ocispecs.MediaTypeImageIndex, Manifests: named}, ocispecs.MediaTypeImageIndex))(t)
		root := got(os.OpenRoot(l.dir))(t)
		r := newReach()
		must(t, r.follow(root, index, nil))
		must(t, root.Close())
		layers := 0
		for blob := range l.blobs(t) {
			if _, reached := r.blobs[blob]; reached && blob != index.Digest {
				layers++
			}
		}
		if layers != 3 { // the manifest, its configuration and its layer
			t.Errorf("%d blobs are reached through %v", layers, []string{named[0].MediaType, named[1].MediaType})
		}
	}
}
