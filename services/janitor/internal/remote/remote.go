// Package remote looks at a registry by its API alone, for those whose storage is out of
// reach. It sees what tags reach: what has no tag, and blobs, are the registry's own to
// remove.
package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
)

// Registry is what is asked of the registry here.
type Registry interface {
	usage.Registry
	DeleteManifest(ctx context.Context, repository string, digest content.Digest) error
}

// View is a registry as its API shows it.
type View struct {
	registry Registry
	mu       sync.Mutex // one scan at a time
	scanner  *usage.Scanner
}

// New returns a view of a registry.
func New(registry Registry) *View {
	return &View{registry: registry, scanner: usage.NewScanner(registry)}
}

// Inventory is what tags reach now. When things were pushed is not known.
func (v *View) Inventory(ctx context.Context) (out inventory.Registry, warnings []string, _ error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	out.Time = time.Now()
	found, err := v.scanner.Scan(ctx)
	if err != nil {
		return out, nil, err
	}
	for _, r := range found {
		if r.Err != nil {
			warnings = append(warnings, fmt.Sprintf("%s could not be looked at, and nothing of it goes: %v", r.Name, r.Err))
			continue
		}
		of := inventory.Repository{Name: r.Name}
		for _, m := range r.Manifests {
			of.Manifests = append(of.Manifests, inventory.Manifest{Manifest: &m})
		}
		slices.SortFunc(of.Manifests, func(a, b inventory.Manifest) int { return cmp.Compare(a.Digest, b.Digest) })
		for _, t := range r.Tags {
			if t.Digest != "" {
				of.Tags = append(of.Tags, inventory.Tag{Name: t.Name, Digest: t.Digest})
			}
		}
		out.Repositories = append(out.Repositories, of)
	}
	return out, warnings, nil
}

// Delete deletes a manifest, if these tags still lead to it. The registry takes those tags
// with it.
func (v *View) Delete(ctx context.Context, repository string, digest content.Digest, tags []string) (deleted bool, _ error) {
	for _, tag := range tags {
		is, err := v.registry.Resolve(ctx, repository, tag)
		if errors.Is(err, content.ErrNotFound) {
			return false, nil
		}
		if err != nil || is != digest {
			return false, err
		}
	}
	err := v.registry.DeleteManifest(ctx, repository, digest)
	return err == nil, err
}
