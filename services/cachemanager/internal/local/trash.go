package local

import (
	"errors"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/pkg/failpoint"
)

// Where a test may kill the cache manager.
const (
	failRestored failpoint.Name = "local.restored" // a blob was put back
	failTrashed  failpoint.Name = "local.trashed"  // a blob went to the trash
	failPurged   failpoint.Name = "local.purged"   // a blob of the trash was removed
	failIndexed  failpoint.Name = "local.indexed"  // tags went from the index, and nothing else was done
	failLedger   failpoint.Name = "local.ledger"   // the ledger is to be written
	failShrunk   failpoint.Name = "local.shrunk"   // a smaller manifest is written, and not yet in the index
	failMended   failpoint.Name = "local.mended"   // manifests without what is corrupt are written, and not yet in the index
	failCorrupt  failpoint.Name = "local.corrupt"  // a corrupt blob was taken out
)

// trashed is a blob in the trash.
type trashed struct {
	path string
	at   time.Time // when it went there
}

// trash is what the trash holds. A blob may be there more than once.
type trash map[digest.Digest][]trashed

func readTrash(root *os.Root) (trash, error) {
	found := trash{}
	moments, err := readDir(root, trashDir)
	if err != nil {
		return nil, err
	}
	for _, moment := range moments {
		at, ok := stampOf(moment.Name())
		if !ok {
			continue
		}
		blobs, err := readDir(root, trashDir+"/"+moment.Name())
		if err != nil {
			return nil, err
		}
		for _, blob := range blobs {
			d := digest.Digest(blob.Name())
			if d.Validate() == nil {
				found[d] = append(found[d], trashed{trashDir + "/" + moment.Name() + "/" + blob.Name(), at})
			}
		}
	}
	return found, nil
}

// restore puts a blob back. It reports whether the blob is there now.
func (t trash) restore(root *os.Root, d digest.Digest) (bool, error) {
	if _, err := root.Lstat(blobPath(d)); err == nil {
		return true, nil // somebody has written it anew
	}
	for _, from := range t[d] {
		switch err := root.Rename(from.path, blobPath(d)); {
		case err == nil:
			failpoint.Hit(failRestored)
			return true, nil
		case !missing(err):
			return false, err
		}
	}
	return false, nil
}

// restoreTag puts back all that a manifest reaches. It reports whether all is there
// now.
func restoreTag(root *os.Root, m ocispecs.Descriptor) (whole bool, err error) {
	gone, err := readTrash(root)
	if err != nil {
		return false, err
	}
	reached := newReach()
	if err := reached.follow(root, m, func(d digest.Digest) (bool, error) { return gone.restore(root, d) }); err != nil {
		return false, err
	}
	whole = reached.whole()
	for d := range reached.blobs {
		there, err := gone.restore(root, d)
		if err != nil {
			return false, err
		}
		whole = whole && there
	}
	return whole, nil
}

// discard moves a blob to the trash of a moment.
func discard(root *os.Root, d digest.Digest, moment string) error {
	err := root.Rename(blobPath(d), moment+"/"+d.String())
	if missing(err) {
		return nil
	}
	if err == nil {
		failpoint.Hit(failTrashed)
	}
	return err
}

// purge removes what has been in the trash for long enough, up to a number, and the
// directories that are empty then.
func (t trash) purge(root *os.Root, until time.Time, most int) (amount Amount, err error) {
	for _, all := range t {
		for _, one := range all {
			if one.at.After(until) || amount.Blobs >= int64(most) {
				continue
			}
			info, err := root.Lstat(one.path)
			if missing(err) {
				continue
			}
			if err == nil {
				err = root.Remove(one.path)
			}
			if err != nil && !missing(err) {
				return amount, err
			}
			failpoint.Hit(failPurged)
			amount.Blobs++
			amount.Bytes += info.Size()
		}
	}
	return amount, removeEmpty(root, trashDir)
}

// removeEmpty removes the empty directories of moments.
func removeEmpty(root *os.Root, below string) error {
	moments, err := readDir(root, below)
	if err != nil {
		return err
	}
	for _, moment := range moments {
		name := below + "/" + moment.Name()
		if entries, err := readDir(root, name); err != nil || len(entries) > 0 {
			if err != nil {
				return err
			}
			continue
		}
		if err := root.Remove(name); err != nil && !missing(err) && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}
