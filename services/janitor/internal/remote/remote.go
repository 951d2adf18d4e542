// Package remote reads and deletes through a registry's API alone, for registries whose storage is
// out of reach. It sees what tags reach: manifests without a tag, and blobs, are the registry's own
// to remove.
//
// Only a 404 says that something is absent. After any other failure, such as a 429, a 503 or a body
// that is cut, a repository is left out: what could not be read may name anything in it.
package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
)

// Registry is what is asked of the registry here.
type Registry interface {
	usage.Registry
	DeleteManifest(ctx context.Context, repository string, digest content.Digest) error
	// Created reads when what a configuration is of was made.
	Created(ctx context.Context, repository string, config content.Digest) (time.Time, error)
}

// View is a registry as its API shows it.
type View struct {
	registry Registry
	mu       sync.Mutex // one scan at a time
	scanner  *usage.Scanner
	made     map[content.Digest]time.Time // by configuration
}

// New returns a view of a registry.
func New(registry Registry) *View {
	return &View{registry: registry, scanner: usage.NewScanner(registry)}
}

// Inventory returns what tags reach now, without the repositories of which something could not be
// read; warnings name these. When things were pushed is not known; when they were made is read from
// their configurations if created is set.
func (v *View) Inventory(ctx context.Context, created bool) (out inventory.Registry, warnings []string, _ error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	out.Time = time.Now()
	found, err := v.scanner.Scan(ctx)
	if err != nil {
		return out, nil, err
	}
	for _, r := range found {
		if err := cmp.Or(r.Err, r.Unread); err != nil {
			warnings = append(warnings, fmt.Sprintf("%s could not be read as a whole, and nothing of it goes: %v", r.Name, err))
			out.Unread = append(out.Unread, r.Name)
			continue
		}
		out.Repositories = append(out.Repositories, repository(r))
	}
	err = v.findSubjects(ctx, out)
	if created && err == nil {
		err = v.readCreated(ctx, out)
	}
	return out, warnings, err
}

// findSubjects asks for the subjects of signatures that no tag reaches: an image that is used by its
// digest needs its signature.
func (v *View) findSubjects(ctx context.Context, r inventory.Registry) error {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range r.Repositories {
		of := &r.Repositories[i]
		kinds := map[content.Digest]content.Kind{}
		for _, m := range of.Manifests {
			kinds[m.Digest] = m.Of
		}
		for _, tag := range of.Tags {
			subject := plan.SubjectOf(tag, kinds[tag.Digest])
			if _, seen := kinds[subject]; subject == "" || seen {
				continue
			}
			group.Go(func() error {
				if _, err := v.registry.Manifest(ctx, of.Name, subject); errors.Is(err, content.ErrNotFound) {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				of.Beside = append(of.Beside, subject)
				return ctx.Err()
			})
		}
	}
	return group.Wait()
}

// atOnce is how many configurations are read at the same time.
const atOnce = 8

// readCreated fills in when manifests were made. Where that cannot be read it stays unknown.
func (v *View) readCreated(ctx context.Context, r inventory.Registry) error {
	var mu sync.Mutex
	made := map[content.Digest]time.Time{} // also forgets what is not there any more
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, of := range r.Repositories {
		for i := range of.Manifests {
			m := &of.Manifests[i]
			config := m.Config()
			if config == "" {
				continue
			}
			group.Go(func() error {
				at, known := v.made[config]
				if !known {
					var err error
					if at, err = v.registry.Created(ctx, of.Name, config); err != nil {
						return ctx.Err()
					}
				}
				m.Created = at
				mu.Lock()
				defer mu.Unlock()
				made[config] = at
				return nil
			})
		}
	}
	err := group.Wait()
	v.made = made
	return err
}

// repository translates one that was read as a whole.
func repository(r usage.Repository) inventory.Repository {
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
	return of
}

// Delete deletes a manifest if these tags, and no other, still lead to it and no index lists it. The
// registry deletes the tags with it, so all tags of the repository and the indexes that they reach
// are read again first; manifests that were read before are not. An error that is content.ErrBroken
// says that the repository could not be read as a whole, and that nothing was deleted.
func (v *View) Delete(ctx context.Context, repository string, digest content.Digest, tags []string) (deleted bool, _ error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.scanner.ScanRepository(ctx, repository)
	if err := cmp.Or(now.Err, now.Unread); err != nil {
		return false, err
	}
	if !free(now, digest, tags) {
		return false, nil
	}
	err := v.registry.DeleteManifest(ctx, repository, digest)
	return err == nil, err
}

// free reports whether the tags that lead to a manifest are these, and no index lists it.
func free(r usage.Repository, digest content.Digest, tags []string) bool {
	var lead []string
	for _, t := range r.Tags {
		if t.Digest == digest {
			lead = append(lead, t.Name)
		}
	}
	slices.Sort(lead)
	if !slices.Equal(lead, slices.Sorted(slices.Values(tags))) {
		return false
	}
	for owner, m := range r.Manifests {
		if owner != digest && slices.Contains(m.Children, digest) {
			return false
		}
	}
	return true
}
