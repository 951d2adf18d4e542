package local

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Remove takes tags from the index that no lease holds, that nothing has used for a
// time and that are as they were listed, and calls freed for each, with the bytes that
// nothing reaches any more. Sweep then takes these away, after the grace.
func (d *Directory) Remove(ctx context.Context, tags []cache.Target, unusedFor time.Duration, freed func(tag string, bytes int64)) error {
	root, err := d.open()
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // all is written
	for try := 1; ; try++ {
		err := d.between(ctx, root, func() error { return d.remove(ctx, root, tags, unusedFor, freed) })
		if !errors.Is(err, errChanged) || try == indexTries {
			return d.explain(err, "changed")
		}
	}
}

func (d *Directory) remove(ctx context.Context, root *os.Root, tags []cache.Target, unusedFor time.Duration, freed func(string, int64)) error {
	index, before, err := d.readIndex(ctx, root)
	if err != nil {
		return err
	}
	book, err := readLedger(root)
	if err != nil {
		return err
	}
	byTag := manifestsOf(index)
	reached, holders, err := reachOf(root, byTag)
	if err != nil {
		return err
	}
	removable, err := d.removable(root, byTag, book, unusedFor)
	if err != nil {
		return err
	}
	gone, bytes := map[string]bool{}, map[string]int64{}
	var orphaned []digest.Digest
	for _, target := range tags {
		tag := target.ID
		if !removable(target) || gone[tag] {
			continue
		}
		gone[tag] = true
		for blob := range reached[tag].blobs {
			if holders[blob]--; holders[blob] > 0 {
				continue
			}
			orphaned = append(orphaned, blob)
			if info, err := root.Lstat(blobPath(blob)); err == nil {
				bytes[tag] += info.Size()
			}
		}
	}
	if len(gone) == 0 {
		return nil
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(m ocispecs.Descriptor) bool { return gone[tagOf(m)] })
	if err := d.writeIndex(ctx, root, index, before); err != nil {
		return err
	}
	failpoint.Hit(failIndexed)
	for tag := range gone {
		delete(book.Uses, tag)
	}
	for _, blob := range orphaned {
		book.Orphans[blob] = d.now()
	}
	for _, tag := range tags {
		if gone[tag.ID] {
			freed(tag.ID, bytes[tag.ID])
			delete(gone, tag.ID)
		}
	}
	return book.write(root)
}

// reachOf is what each tag reaches, and how many tags reach each blob.
func reachOf(root *os.Root, byTag map[string][]ocispecs.Descriptor) (map[string]reach, map[digest.Digest]int, error) {
	reached, holders := map[string]reach{}, map[digest.Digest]int{}
	for tag, manifests := range byTag {
		r := newReach()
		for _, m := range manifests {
			if err := r.follow(root, m, nil); err != nil {
				return nil, nil, err
			}
		}
		reached[tag] = r
		for blob := range r.blobs {
			holders[blob]++
		}
	}
	return reached, holders, nil
}

// removable tells which tags may go.
func (d *Directory) removable(
	root *os.Root, byTag map[string][]ocispecs.Descriptor, book ledger, unusedFor time.Duration,
) (func(cache.Target) bool, error) {
	live, err := d.leases(root)
	if err != nil {
		return nil, err
	}
	until := d.now().Add(-unusedFor)
	return func(tag cache.Target) bool {
		manifests := byTag[tag.ID]
		return len(manifests) > 0 && revision(manifests) == tag.Revision && book.Uses[tag.ID].Time.Before(until) &&
			!slices.ContainsFunc(live, func(l Lease) bool { return l.Tag == tag.ID })
	}, nil
}
