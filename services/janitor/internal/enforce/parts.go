package enforce

import (
	"context"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
)

// used are the blobs of a repository that were pulled, without their sizes, and when each last was.
type used map[content.Blob]time.Time

// usedIn finds them by all names of the repository.
func usedIn(book *lastuse.Book, names []string) used {
	var all used
	for _, name := range names {
		for d, at := range book.Pulls(name) {
			if all == nil {
				all = used{}
			}
			if b := content.NewBlob(d, 0); at.After(all[b]) {
				all[b] = at
			}
		}
	}
	return all
}

// last is when a blob that a manifest of a repository names was last pulled. Zero: not known of.
func (u used) last(r *inventory.Repository, m *content.Manifest) (last time.Time) {
	for b := range m.Layers() {
		at := u[b]
		if _, is := b.Sum(); !is {
			at = u[content.NewBlob(r.Resolved[b.Digest()], 0)]
		}
		if at.After(last) {
			last = at
		}
	}
	return last
}

// partsEvery is how much later a pull of a blob has to be to be noted of a manifest again.
const partsEvery = time.Hour

// noteParts notes the pulls of blobs as uses of the manifests that name them: the former are not kept
// for long.
func (e *Engine) noteParts(ctx context.Context, r inventory.Registry, book *lastuse.Book) error {
	var uses []lastuse.Use
	for i := range r.Repositories {
		of := &r.Repositories[i]
		pulled := usedIn(book, of.Names())
		if len(pulled) == 0 {
			continue
		}
		for _, m := range of.Manifests {
			at := pulled.last(of, m.Manifest)
			if _, known := book.Last(of.Name, m.Digest, nil); at.Sub(known) > partsEvery {
				uses = append(uses, lastuse.Use{Repository: of.Name, Name: lastuse.ByDigest(m.Digest), At: at})
			}
		}
	}
	if len(uses) == 0 {
		return nil
	}
	_, err := e.State.RecordUses(ctx, uses)
	return err
}
