package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/time/rate"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

const (
	clean     = "run `kiln clean-cache`, and export the cache again"
	goesAfter = "nothing: the next run collects it after the grace"
)

// Verify reads all blobs, compares them with their digests, and tells what is wrong. It
// reads at most so many bytes a second; 0 is without bound. Nothing is changed. It calls
// tell and progress one at a time, progress at least once a second.
func (d *Directory) Verify(ctx context.Context, bytesPerSecond int64, tell func(cache.Defect), progress func(cache.VerifyProgress)) error {
	root, err := d.open()
	if missing(err) {
		progress(cache.VerifyProgress{})
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // opened for reading
	v := &verification{dir: d, root: root, tell: tell, progress: progress, limit: unlimited()}
	if bytesPerSecond > 0 {
		v.limit = rate.NewLimiter(rate.Limit(bytesPerSecond), readSize)
	}
	return d.explain(v.run(ctx), "verified")
}

// readSize is how much is read at a time.
const readSize = 256 << 10

// verification is one check of a directory.
type verification struct {
	dir      *Directory
	root     *os.Root
	tell     func(cache.Defect)
	progress func(cache.VerifyProgress)
	limit    *rate.Limiter
	at       cache.VerifyProgress
	told     time.Time
	tags     map[digest.Digest][]string
}

func (v *verification) run(ctx context.Context) error {
	index, _, err := v.dir.readIndex(ctx, v.root)
	if bad, ok := errors.AsType[*fault.Error](err); ok && bad.Kind == fault.FailedPrecondition && ctx.Err() == nil {
		v.found(cache.Defect{Kind: cache.BadIndex, Message: bad.Message, Remedy: bad.Remedy})
	} else if err != nil {
		return err
	}
	// After the index: what it names is there before it is named.
	blobs, err := scan(v.root)
	if err != nil {
		return err
	}
	if err := v.reached(index, blobs); err != nil {
		return err
	}
	v.at.TotalBlobs = int64(len(blobs))
	for _, info := range blobs {
		v.at.TotalBytes += info.size
	}
	for _, blob := range sortedBlobs(blobs) {
		if err := v.blob(ctx, blob, blobs[blob]); err != nil {
			return err
		}
	}
	v.ingests()
	if err := v.foreign(); err != nil {
		return err
	}
	v.progress(v.at)
	return nil
}

func sortedBlobs[V any](m map[digest.Digest]V) []digest.Digest {
	all := make([]digest.Digest, 0, len(m))
	for d := range m {
		all = append(all, d)
	}
	slices.Sort(all)
	return all
}

func (v *verification) found(defect cache.Defect) {
	v.at.Defects++
	v.tell(defect)
}

// reached notes which tags reach each blob, and tells what they miss.
func (v *verification) reached(index ocispecs.Index, blobs map[digest.Digest]blobInfo) error {
	v.tags = map[digest.Digest][]string{}
	bad := map[digest.Digest]bool{}
	byTag := manifestsOf(index)
	for _, tag := range sortedKeys(byTag) {
		r := newReach()
		for _, m := range byTag[tag] {
			if err := r.follow(v.root, m, nil); err != nil {
				return err
			}
		}
		for blob := range r.blobs {
			v.tags[blob] = append(v.tags[blob], tag)
		}
		for _, d := range r.bad {
			bad[d] = true
		}
	}
	for _, blob := range sortedBlobs(v.tags) {
		if _, there := blobs[blob]; !there {
			v.found(cache.Defect{
				Kind: cache.MissingBlob, Digest: blob.String(), Tags: v.tags[blob], Remedy: clean,
				Message: fmt.Sprintf("blob %s is not there, and %s reaches it", blob, list("tag", v.tags[blob])),
			})
		}
	}
	for _, d := range sortedBlobs(bad) {
		v.found(cache.Defect{
			Kind: cache.BadManifest, Digest: d.String(), Tags: v.tags[d], Bytes: blobs[d].size, Remedy: clean,
			Message: fmt.Sprintf("manifest %s of %s cannot be read", d, list("tag", v.tags[d])),
		})
	}
	return nil
}

func list(what string, all []string) string {
	if len(all) > 1 {
		what += "s"
	}
	return what + " " + strings.Join(all, ", ")
}

// blob compares one blob with its digest.
func (v *verification) blob(ctx context.Context, blob digest.Digest, info blobInfo) error {
	tags := v.tags[blob]
	switch fits, err := v.fits(ctx, blob); {
	case missing(err): // collected meanwhile
	case errors.Is(err, os.ErrPermission):
		v.found(cache.Defect{
			Kind: cache.Foreign, Digest: blob.String(), Tags: tags, Bytes: info.size, Message: fmt.Sprintf("blob %s cannot be read by the cache manager", blob),
			Remedy: "chmod it, and have those who build use a umask of 0002",
		})
	case err != nil:
		return err
	case !fits:
		message := fmt.Sprintf("the bytes of blob %s have another digest", blob)
		if len(tags) > 0 {
			message += ", and " + list("tag", tags) + " reaches it"
		}
		v.found(cache.Defect{Kind: cache.CorruptBlob, Digest: blob.String(), Tags: tags, Bytes: info.size, Message: message, Remedy: clean})
	case len(tags) == 0:
		v.found(cache.Defect{Kind: cache.Orphan, Digest: blob.String(), Bytes: info.size, Message: fmt.Sprintf("nothing reaches blob %s", blob), Remedy: goesAfter})
	}
	v.at.Blobs++
	return nil
}

// fits reports whether a blob has its digest.
func (v *verification) fits(ctx context.Context, blob digest.Digest) (bool, error) {
	f, _, err := openQuietly(v.root, blobPath(blob))
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }() // read only
	verifier := blob.Verifier()
	buffer := make([]byte, readSize)
	for {
		n, err := f.Read(buffer)
		_, _ = verifier.Write(buffer[:n]) // a hash takes all
		v.at.Bytes += int64(n)
		if now := time.Now(); now.Sub(v.told) > time.Second {
			v.told = now
			v.progress(v.at)
		}
		switch {
		case errors.Is(err, io.EOF):
			return verifier.Verified(), nil
		case err != nil:
			return false, err
		}
		if err := v.limit.WaitN(ctx, n); err != nil {
			return false, context.Cause(ctx)
		}
	}
}

func (v *verification) ingests() {
	for _, name := range ingestsBefore(v.root, v.dir.now().Add(-max(v.dir.opts.Grace, minIngest))) {
		v.found(cache.Defect{Kind: cache.AbortedIngest, Message: name + " is of a download that never ended", Remedy: goesAfter})
	}
}

// foreign tells of what does not belong in the directory.
func (v *verification) foreign() error {
	known := []string{indexFile, indexLock, exportLock, blobsDir, ingestDir, ownDir, ocispecs.ImageLayoutFile}
	top, err := readDir(v.root, ".")
	if err != nil {
		return err
	}
	for _, entry := range top {
		if !slices.Contains(known, entry.Name()) {
			v.stranger(entry.Name())
		}
	}
	algorithms, err := readDir(v.root, blobsDir)
	if err != nil {
		return err
	}
	for _, algorithm := range algorithms {
		files, err := readDir(v.root, blobsDir+"/"+algorithm.Name())
		if err != nil {
			return err
		}
		for _, file := range files {
			if _, ok := digestOf(algorithm.Name(), file.Name()); !ok || !file.Type().IsRegular() {
				v.stranger(blobsDir + "/" + algorithm.Name() + "/" + file.Name())
			}
		}
	}
	return nil
}

func (v *verification) stranger(name string) {
	v.found(cache.Defect{Kind: cache.Foreign, Message: name + " is nothing that BuildKit has put there", Remedy: "look at it, and move it away: no run touches it"})
}

func unlimited() *rate.Limiter { return rate.NewLimiter(rate.Inf, readSize) }
