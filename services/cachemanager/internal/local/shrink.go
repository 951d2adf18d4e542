package local

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Shrink makes a tag smaller by the first of the layers that its record's Shrinks list,
// under the conditions of Remove, and returns the bytes that nothing reaches any more;
// false when it was left as it is.
func (d *Directory) Shrink(ctx context.Context, tag cache.Target, steps int, unusedFor time.Duration) (freed int64, done bool, err error) {
	root, err := d.open()
	if missing(err) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = root.Close() }() // all is written
	for try := 1; ; try++ {
		err := d.between(ctx, root, func() error {
			freed, done, err = d.shrink(ctx, root, tag, steps, unusedFor)
			return err
		})
		if !errors.Is(err, errChanged) || try == indexTries {
			return freed, done, d.explain(err, "changed")
		}
	}
}

func (d *Directory) shrink(ctx context.Context, root *os.Root, target cache.Target, steps int, unusedFor time.Duration) (int64, bool, error) {
	index, before, err := d.readIndex(ctx, root)
	if err != nil {
		return 0, false, err
	}
	book, err := readLedger(root)
	if err != nil {
		return 0, false, err
	}
	byTag := manifestsOf(index)
	removable, err := d.removable(root, byTag, book, unusedFor)
	tag := target.ID
	if err != nil || !removable(target) || len(byTag[tag]) != 1 {
		return 0, false, err
	}
	_, holders, err := reachOf(root, byTag)
	if err != nil {
		return 0, false, err
	}
	m := byTag[tag][0]
	b, err := readCache(root, m)
	if err != nil {
		return 0, false, err
	}
	gone := map[digest.Digest]bool{}
	var freed int64
	for _, layer := range b.leavesFirst() {
		if len(gone) == steps {
			break
		}
		gone[layer] = true
		if info, err := root.Lstat(blobPath(layer)); err == nil && holders[layer] == 1 {
			freed += info.Size()
		}
	}
	if !b.without(gone) {
		return 0, false, nil
	}
	after, err := b.write(root, m)
	if err != nil {
		return 0, false, err
	}
	for i := range index.Manifests {
		if tagOf(index.Manifests[i]) == tag {
			index.Manifests[i] = after
		}
	}
	failpoint.Hit(failShrunk)
	return freed, true, d.writeIndex(ctx, root, index, before)
}

// shrinks are the bytes that a tag is smaller by without its layers, one after the
// other: those that only it reaches. One layer is left.
func shrinks(root *os.Root, m ocispecs.Descriptor, size func(digest.Digest) int64) []int64 {
	b, err := readCache(root, m)
	if err != nil {
		return nil // nothing that can be made smaller
	}
	var all []int64
	order := b.leavesFirst()
	for _, layer := range order[:max(0, len(order)-1)] {
		all = append(all, size(layer))
	}
	return all
}

// leavesFirst are the layers in the order in which the cache is least the worse without
// them: none before those that are made upon it, the oldest first.
func (b *build) leavesFirst() []digest.Digest {
	sizes := b.layers()
	nodes := map[digest.Digest]*leaf{}
	for _, l := range b.config.Layers {
		n := nodes[l.Blob]
		if n == nil {
			n = &leaf{blob: l.Blob, size: sizes[l.Blob].Size, parents: map[*leaf]bool{}}
			nodes[l.Blob] = n
		}
		var at struct {
			CreatedAt time.Time `json:"createdAt"`
		}
		if json.Unmarshal(l.Annotations, &at) == nil && at.CreatedAt.After(n.created) {
			n.created = at.CreatedAt
		}
	}
	for _, l := range b.config.Layers {
		if l.Parent < 0 {
			continue
		}
		if parent := nodes[b.config.Layers[l.Parent].Blob]; parent != nodes[l.Blob] && !nodes[l.Blob].parents[parent] {
			nodes[l.Blob].parents[parent] = true
			parent.children++
		}
	}
	var ready leaves
	for _, n := range nodes {
		if n.children == 0 {
			ready = append(ready, n)
		}
	}
	heap.Init(&ready)
	var order []digest.Digest
	for len(ready) > 0 {
		n, _ := heap.Pop(&ready).(*leaf)
		order = append(order, n.blob)
		for parent := range n.parents {
			if parent.children--; parent.children == 0 {
				heap.Push(&ready, parent)
			}
		}
	}
	return order
}

// leaf is a layer on the way to be one.
type leaf struct {
	blob     digest.Digest
	size     int64
	created  time.Time
	parents  map[*leaf]bool
	children int // that are made upon it and have not gone
}

// leaves is a heap, the next to go first.
type leaves []*leaf

func (h leaves) Len() int { return len(h) }
func (h leaves) Less(i, j int) bool {
	return cmp.Or(h[i].created.Compare(h[j].created), cmp.Compare(h[j].size, h[i].size), bytes.Compare([]byte(h[i].blob), []byte(h[j].blob))) < 0
}
func (h leaves) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *leaves) Push(x any) { *h = append(*h, x.(*leaf)) } //nolint:forcetypeassert // of this package

// Pop implements heap.Interface.
func (h *leaves) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
