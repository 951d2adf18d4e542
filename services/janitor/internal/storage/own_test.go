package storage_test

import (
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/storage"
)

// What the janitor has pushed to check the registry, and took away meanwhile, is no broken image.
func TestLacks_LeavesOutTheJanitorsOwn(t *testing.T) {
	gone := content.NewBlob(content.Digest("sha256:"+strings.Repeat("a", 64)), 1)
	of := func(name string) inventory.Repository {
		m := &content.Manifest{Digest: "sha256:b", Of: content.Image, Blobs: []content.Blob{gone}}
		return inventory.Repository{Name: name, Manifests: []inventory.Manifest{{Manifest: m}}}
	}
	r := inventory.Registry{Repositories: []inventory.Repository{of("app"), of("kiln-janitor/canary-pulls")}}
	lacks, err := storage.New(t.TempDir()).Lacks(t.Context(), r)
	if err != nil || len(lacks) != 1 || lacks[0].Repository != "app" {
		t.Errorf("%+v, %v", lacks, err)
	}
}
