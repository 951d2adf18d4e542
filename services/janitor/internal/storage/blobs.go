package storage

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"slices"
	"sync/atomic"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// blobs are those that are stored, and which of them are named. A large registry has a
// million: it takes their sums, in order, and a bit for each.
type blobs struct {
	shards [256]shard // by the first bytes of sums
	bytes  []int64    // that manifests say, by their numbers
}

type shard struct {
	sums  []content.Sum // in order
	named []uint32      // a bit for each
	from  int           // the number of the first
}

// newBlobs are the blobs of the directories of their prefixes.
func newBlobs(ctx context.Context, prefixes []directory) (*blobs, error) {
	all, count := &blobs{}, 0
	for _, dir := range prefixes {
		if sums := dir.hashes; len(sums) > 0 {
			all.shards[sums[0][0]] = shard{sums, make([]uint32, (len(sums)+31)/32), count}
			count += len(sums)
		}
	}
	all.bytes = make([]int64, count)
	return all, inParallel(ctx, len(all.shards), func(i int) error {
		all.shards[i].sums = inOrder(all.shards[i].sums)
		return nil
	})
}

// inOrder are sums in order, in a slice of their own when they are not.
func inOrder(sums []content.Sum) []content.Sum {
	if slices.IsSortedFunc(sums, compareSums) {
		return sums
	}
	return slices.SortedFunc(slices.Values(sums), compareSums)
}

// compareSums compares most by their first bytes alone, which are enough.
func compareSums(a, b content.Sum) int {
	if c := cmp.Compare(binary.BigEndian.Uint64(a[:]), binary.BigEndian.Uint64(b[:])); c != 0 {
		return c
	}
	return bytes.Compare(a[8:], b[8:])
}

// name notes that something names a blob. It returns its number.
func (b *blobs) name(s content.Sum) int32 {
	of := &b.shards[s[0]]
	i, is := find(of.sums, s)
	if !is {
		return inventory.Missing
	}
	if bit := uint32(1) << (i % 32); atomic.LoadUint32(&of.named[i/32])&bit == 0 {
		atomic.OrUint32(&of.named[i/32], bit)
	}
	return int32(of.from + i) //nolint:gosec // there are fewer blobs than that
}

// has reports whether a blob is stored.
func (b *blobs) has(s content.Sum) bool {
	_, is := find(b.shards[s[0]].sums, s)
	return is
}

// find is where a sum is. Sums that begin with the same byte are spread evenly after that:
// it is near where its next bytes say.
func find(sums []content.Sum, s content.Sum) (int, bool) {
	if len(sums) == 0 {
		return 0, false
	}
	i := int(uint64(binary.BigEndian.Uint32(s[1:])) * uint64(len(sums)) >> 32) //nolint:gosec // less than their number
	step := compareSums(s, sums[i])
	for range 64 {
		if step == 0 {
			return i, true
		}
		if i += step; i < 0 || i == len(sums) {
			return 0, false
		}
		next := compareSums(s, sums[i])
		if next == -step {
			return 0, false // between two
		}
		step = next
	}
	return slices.BinarySearchFunc(sums, s, compareSums)
}

// unnamed calls do for the blobs that nothing names, until it fails.
func (b *blobs) unnamed(do func(content.Sum) error) error {
	for _, of := range b.shards {
		for i, sum := range of.sums {
			if of.named[i/32]&(1<<(i%32)) != 0 {
				continue
			}
			if err := do(sum); err != nil {
				return err
			}
		}
	}
	return nil
}
