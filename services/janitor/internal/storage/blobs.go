package storage

import (
	"context"
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// blobs are those that are stored, and which of them are named. A large registry has a
// million: it takes their sums as they were listed, two places to find each, and a bit.
type blobs struct {
	shards [256]shard // by the first bytes of sums
	bytes  []int64    // that manifests say, by their numbers
}

type shard struct {
	sums   []content.Sum
	places []uint32 // of each sum its index and one, where its hash says or the next that is free
	shift  int      // what of a hash is too much
	named  []uint32 // a bit for each
	from   int      // the number of the first
}

// newBlobs are the blobs of the directories of their prefixes.
func newBlobs(ctx context.Context, prefixes []directory) (*blobs, error) {
	all, count := &blobs{}, 0
	for _, dir := range prefixes {
		if sums := dir.hashes; len(sums) > 0 {
			all.shards[sums[0][0]] = shard{sums: sums, from: count}
			count += len(sums)
		}
	}
	all.bytes = make([]int64, count)
	return all, inParallel(ctx, len(all.shards), func(i int) error {
		all.shards[i].index()
		return nil
	})
}

// index gives each sum its place. Half of them stay free, so that few are looked at.
func (of *shard) index() {
	width := bits.Len(uint(2 * len(of.sums)))
	of.named = make([]uint32, (len(of.sums)+31)/32)
	of.places, of.shift = make([]uint32, 1<<width), 64-width
	for i, s := range of.sums {
		at := of.place(s)
		for of.places[at] != 0 {
			at = (at + 1) & (len(of.places) - 1)
		}
		of.places[at] = uint32(i + 1) //nolint:gosec // there are fewer blobs than that
	}
}

// place is where a sum would be. Sums are hashes themselves, but for who makes some that begin
// alike: they are spread by the golden ratio (Knuth, The Art of Computer Programming, 6.4).
func (of *shard) place(s content.Sum) int {
	return int(binary.BigEndian.Uint64(s[1:]) * 0x9e3779b97f4a7c15 >> of.shift) //nolint:gosec // less than the number of places
}

// find is which of the sums it is.
func (of *shard) find(s content.Sum) (int, bool) {
	for at := of.place(s); of.places[at] != 0; at = (at + 1) & (len(of.places) - 1) {
		if i := int(of.places[at]) - 1; of.sums[i] == s {
			return i, true
		}
	}
	return 0, false
}

// name notes that something names a blob. It returns its number.
func (b *blobs) name(s content.Sum) int32 {
	of := &b.shards[s[0]]
	i, is := of.find(s)
	if !is {
		return inventory.Missing
	}
	if bit := uint32(1) << (i % 32); atomic.LoadUint32(&of.named[i/32])&bit == 0 {
		atomic.OrUint32(&of.named[i/32], bit)
	}
	return int32(of.from + i) //nolint:gosec // there are fewer blobs than that
}

// namedIn are the blobs that one repository names: a bit for each, by their numbers.
type namedIn struct {
	of   *blobs
	bits []uint64
	set  []int32 // the bits that are set
}

// sets are used again: there is one for each repository.
var sets sync.Pool

// namedBy are the blobs that a repository names. Release it.
func (b *blobs) namedBy(r *inventory.Repository) *namedIn {
	in, _ := sets.Get().(*namedIn)
	if in == nil || len(in.bits) < (len(b.bytes)+63)/64 {
		in = &namedIn{bits: make([]uint64, (len(b.bytes)+63)/64)}
	}
	in.of = b
	for _, all := range r.Reaches {
		for _, n := range all {
			in.add(n)
		}
	}
	for d := range namedBeside(r) {
		if sum, ok := d.Sum(); ok {
			in.add(b.number(sum))
		}
	}
	return in
}

func (in *namedIn) add(n int32) {
	if n != inventory.Missing && in.bits[n/64]&(1<<(n%64)) == 0 {
		in.bits[n/64] |= 1 << (n % 64)
		in.set = append(in.set, n)
	}
}

// has reports whether the repository names a blob that is stored.
func (in *namedIn) has(s content.Sum) bool {
	n := in.of.number(s)
	return n != inventory.Missing && in.bits[n/64]&(1<<(n%64)) != 0
}

func (in *namedIn) release() {
	for _, n := range in.set {
		in.bits[n/64] = 0
	}
	in.of, in.set = nil, in.set[:0]
	sets.Put(in)
}

// number is the number of a blob, or Missing.
func (b *blobs) number(s content.Sum) int32 {
	of := &b.shards[s[0]]
	if i, is := of.find(s); is {
		return int32(of.from + i) //nolint:gosec // there are fewer blobs than that
	}
	return inventory.Missing
}

// has reports whether a blob is stored.
func (b *blobs) has(s content.Sum) bool {
	_, is := b.shards[s[0]].find(s)
	return is
}

// unnamed calls do for the blobs that nothing names, until it fails.
func (b *blobs) unnamed(do func(content.Sum) error) error {
	for n := range b.shards {
		of := &b.shards[n]
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
