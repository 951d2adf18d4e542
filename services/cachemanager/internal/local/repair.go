package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Repair puts right what Verify finds: blobs that are corrupt are taken out, and caches
// lose what they miss; one of which nothing is left goes. What is good stays. It tells
// each defect that it has put right or, in a dry run, would. A defect of a tag that is
// leased is left, and is a FAILED_PRECONDITION fault at the end; so is an index that
// cannot be read, at once.
func (d *Directory) Repair(ctx context.Context, dry bool, tell func(cache.Defect)) error {
	var found []cache.Defect
	var bad *cache.Defect
	err := d.Verify(ctx, 0, func(defect cache.Defect) {
		switch defect.Kind {
		case cache.BadIndex:
			bad = &defect
		case cache.CorruptBlob, cache.MissingBlob, cache.BadManifest, cache.AbortedIngest:
			found = append(found, defect)
		case cache.Orphan, cache.Foreign:
		}
	}, func(cache.VerifyProgress) {})
	if err != nil {
		return err
	}
	if bad != nil {
		return fault.New(fault.FailedPrecondition, "WRONG_STATE", bad.Message, bad.Remedy)
	}
	if dry || len(found) == 0 {
		for _, defect := range found {
			tell(defect)
		}
		return nil
	}
	root, err := d.open()
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // all is written
	r := &repair{dir: d, root: root, tell: tell}
	for try := 1; ; try++ {
		err := d.between(ctx, root, func() error { return r.run(ctx, found) })
		if !errors.Is(err, errChanged) || try == indexTries {
			return errors.Join(d.explain(err, "repaired"), r.refused())
		}
	}
}

// repair is one repair of a directory.
type repair struct {
	dir    *Directory
	root   *os.Root
	tell   func(cache.Defect)
	leased []string // tags that were left, with the leases
}

func (r *repair) refused() error {
	if len(r.leased) == 0 {
		return nil
	}
	return fault.New(fault.FailedPrecondition, "WRONG_STATE", "what is wrong with leased tags was left: "+strings.Join(r.leased, "; "),
		"wait for the builds that use them to end, and run it again")
}

// run puts right what is still wrong of what was found.
func (r *repair) run(ctx context.Context, found []cache.Defect) error {
	index, before, err := r.dir.readIndex(ctx, r.root)
	if err != nil {
		return err
	}
	live, err := r.dir.leases(r.root)
	if err != nil {
		return err
	}
	r.leased = nil
	wrong, done := map[digest.Digest]bool{}, []cache.Defect{}
	for _, defect := range found {
		if defect.Kind == cache.AbortedIngest {
			continue
		}
		if l, ok := leaseOf(live, defect.Tags); ok {
			r.leased = append(r.leased, fmt.Sprintf("%s of tag %s (lease %s of %s)", defect.Digest, l.Tag, l.ID, l.Holder))
			continue
		}
		still, err := r.still(ctx, defect)
		if err != nil {
			return err
		}
		if still {
			wrong[digest.Digest(defect.Digest)] = true
			done = append(done, defect)
		}
	}
	changed, err := r.mend(&index, wrong)
	if err != nil {
		return err
	}
	if changed {
		failpoint.Hit(failMended)
		if err := r.dir.writeIndex(ctx, r.root, index, before); err != nil {
			return err
		}
	}
	// After the index: no manifest names them any more.
	if err := r.takeOut(done); err != nil {
		return err
	}
	for _, defect := range done {
		r.tell(defect)
	}
	return r.abort(found)
}

func leaseOf(live []Lease, tags []string) (Lease, bool) {
	i := slices.IndexFunc(live, func(l Lease) bool { return slices.Contains(tags, l.Tag) })
	if i < 0 {
		return Lease{}, false
	}
	return live[i], true
}

// still reports whether a defect is still there.
func (r *repair) still(ctx context.Context, defect cache.Defect) (bool, error) {
	if defect.Kind == cache.MissingBlob {
		_, err := r.root.Lstat(blobPath(digest.Digest(defect.Digest)))
		return missing(err), nil
	}
	v := &verification{dir: r.dir, root: r.root, progress: func(cache.VerifyProgress) {}, limit: unlimited()}
	fits, err := v.fits(ctx, digest.Digest(defect.Digest))
	if missing(err) {
		return false, nil
	}
	return !fits || defect.Kind == cache.BadManifest, err
}

// mend takes what is wrong out of the manifests of the index.
func (r *repair) mend(index *ocispecs.Index, wrong map[digest.Digest]bool) (changed bool, err error) {
	var kept []ocispecs.Descriptor
	for _, m := range index.Manifests {
		reached := newReach()
		if err := reached.follow(r.root, m, nil); err != nil {
			return false, err
		}
		affected := !reached.whole()
		for blob := range reached.blobs {
			affected = affected || wrong[blob]
		}
		if !affected {
			kept = append(kept, m)
			continue
		}
		changed = true
		smaller, ok, err := r.smaller(m, wrong)
		if err != nil {
			return false, err
		}
		if ok {
			kept = append(kept, smaller)
		}
	}
	index.Manifests = kept
	return changed, nil
}

// smaller is a manifest without blobs; false when nothing is left of it.
func (r *repair) smaller(m ocispecs.Descriptor, gone map[digest.Digest]bool) (ocispecs.Descriptor, bool, error) {
	b, err := readCache(r.root, m)
	if missing(err) || errors.Is(err, errBad) || errors.Is(err, errNotCache) {
		return m, false, nil
	}
	if err != nil || !b.without(gone) {
		return m, false, err
	}
	after, err := b.write(r.root, m)
	return after, err == nil, err
}

// takeOut moves corrupt blobs out of the way, to where nothing puts them back from, so
// that the next export writes them anew.
func (r *repair) takeOut(done []cache.Defect) error {
	moment := stampDir(corruptDir, r.dir.now())
	for _, defect := range done {
		if defect.Kind == cache.MissingBlob {
			continue
		}
		if err := makeDir(r.root, moment); err != nil {
			return err
		}
		if err := r.root.Rename(blobPath(digest.Digest(defect.Digest)), moment+"/"+defect.Digest); err != nil && !missing(err) {
			return err
		}
		failpoint.Hit(failCorrupt)
	}
	return nil
}

// abort removes the ingests that never ended.
func (r *repair) abort(found []cache.Defect) error {
	for _, defect := range found {
		if defect.Kind == cache.AbortedIngest {
			r.tell(defect)
		}
	}
	s := &sweep{dir: r.dir, root: r.root, grace: r.dir.opts.Grace, done: &Swept{}}
	return s.abort()
}
