package local

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/disk"
)

// List lists the tags of the directory. A directory that is not there has none.
//
// The bytes of a tag are those that it alone reaches; those that several reach are
// common. When a tag was last used, the leases tell; of who takes none, the manifest's
// file does: when it was written and, where the file system keeps it, when it was read.
// File systems keep that to the day (relatime), and an export that changes nothing
// leaves no trace at all.
func (d *Directory) List(ctx context.Context) (cache.Listing, error) {
	listing := cache.Listing{Cache: d.Ref(), Time: time.Now()}
	root, err := d.open()
	if missing(err) {
		return listing, nil
	}
	if err != nil {
		return listing, err
	}
	defer func() { _ = root.Close() }() // opened for reading
	index, _, err := d.readIndex(ctx, root)
	if err != nil {
		return listing, err
	}
	blobs, err := scan(root)
	if err != nil {
		return listing, d.explain(err, "listed")
	}
	uses, err := readLedger(root)
	if err != nil {
		return listing, d.explain(err, "listed")
	}
	holders := map[digest.Digest][]string{}
	byTag := manifestsOf(index)
	for _, tag := range sortedKeys(byTag) {
		reached := newReach()
		for _, m := range byTag[tag] {
			if err := reached.follow(root, m, nil); err != nil {
				return listing, d.explain(err, "listed")
			}
		}
		for blob := range reached.blobs {
			holders[blob] = append(holders[blob], tag)
		}
		listing.Records = append(listing.Records, recordOf(root, tag, byTag[tag], reached, uses.Uses[tag]))
	}
	share(&listing, holders, blobs)
	for i, r := range listing.Records {
		if manifests := byTag[r.ID]; len(manifests) == 1 {
			listing.Records[i].Shrinks = shrinks(root, manifests[0], func(blob digest.Digest) int64 {
				if len(holders[blob]) > 1 {
					return 0
				}
				return blobs[blob].size
			})
		}
	}
	if listing.Uncounted, err = uncounted(root, holders, blobs); err != nil {
		return listing, d.explain(err, "listed")
	}
	if listing.Disk, err = d.Disk(); err != nil {
		return listing, d.explain(err, "listed")
	}
	return listing, nil
}

// recordOf is the record of a tag, yet without its bytes.
func recordOf(root *os.Root, tag string, manifests []ocispecs.Descriptor, reached reach, u use) cache.Record {
	r := cache.Record{
		ID: tag, Revision: revision(manifests), Type: cache.LocalTag, LastUsed: u.Time, UsageCount: u.Count, Projects: u.Projects,
		Description: fmt.Sprintf("cache of %d blobs, manifest %s", len(reached.blobs), manifests[len(manifests)-1].Digest),
	}
	if !reached.whole() {
		r.Description += ", which is not whole"
	}
	for _, m := range manifests {
		f, quiet, err := openQuietly(root, blobPath(m.Digest))
		if err != nil {
			continue
		}
		info, err := f.Stat()
		_ = f.Close() // read only
		if err != nil {
			continue
		}
		if info.ModTime().After(r.Created) {
			r.Created = info.ModTime()
		}
		if quiet { // so that the time of access is that of others' reading
			if read := accessTime(info); read.After(r.LastUsed) && read.After(r.Created) {
				r.LastUsed = read
			}
		}
	}
	if r.LastUsed.Before(r.Created) {
		r.LastUsed = r.Created
	}
	return r
}

func accessTime(info os.FileInfo) time.Time {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return time.Time{}
	}
	return time.Unix(stat.Atim.Unix())
}

// share gives each tag the bytes that it alone reaches, and the listing those that
// several do.
func share(listing *cache.Listing, holders map[digest.Digest][]string, blobs map[digest.Digest]blobInfo) {
	own, common := map[string]int64{}, map[string]int64{}
	for blob, tags := range holders {
		size := blobs[blob].size
		if len(tags) == 1 {
			own[tags[0]] += size
		} else {
			common[strings.Join(tags, "\x00")] += size
		}
	}
	for i := range listing.Records {
		listing.Records[i].Bytes = own[listing.Records[i].ID]
	}
	for _, tags := range sortedKeys(common) {
		listing.Common = append(listing.Common, cache.Common{Bytes: common[tags], Records: strings.Split(tags, "\x00")})
	}
}

// uncounted are the bytes that are of no tag: orphans, the trash, ingests.
func uncounted(root *os.Root, holders map[digest.Digest][]string, blobs map[digest.Digest]blobInfo) (bytes int64, err error) {
	for blob, info := range blobs {
		if len(holders[blob]) == 0 {
			bytes += info.size
		}
	}
	for _, below := range []string{trashDir, corruptDir, ingestDir} {
		err := fs.WalkDir(root.FS(), below, func(_ string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Type().IsRegular() {
				var info fs.FileInfo
				if info, err = entry.Info(); err == nil {
					bytes += info.Size()
				}
			}
			if missing(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return bytes, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// Disk looks at the file system that the directory is on; nil when it is not there.
func (d *Directory) Disk() (*cache.Disk, error) {
	on, err := disk.Of(d.opts.Path)
	if missing(err) {
		return nil, nil
	}
	return on, err
}
