package local

import (
	"context"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/pkg/fault"
)

// Amount is blobs and their bytes.
type Amount struct{ Blobs, Bytes int64 }

func (a *Amount) add(o Amount) {
	a.Blobs += o.Blobs
	a.Bytes += o.Bytes
}

// Swept is what a sweep has done.
type Swept struct {
	Trashed Amount // went to the trash
	Purged  Amount // went from the trash, for good
	Aborted int64  // ingests that never ended
}

const (
	batch = 500 // blobs that are moved while exports wait
	// young is by how much newer than a lease a blob may seem older: the clocks of a
	// file system and of a host differ.
	young = 5 * time.Second
)

// Sweep takes away what nothing reaches: orphans of the grace go to the trash, what has
// been there for as long goes for good, and ingests that never ended too. What is
// reached again comes back. When it is urgent, for the disk is nearly full, the grace is
// not waited for; what a lease holds, and what an export is about to name, stays all the
// same.
func (d *Directory) Sweep(ctx context.Context, urgent bool) error {
	done, err := d.sweep(ctx, urgent)
	if done != (Swept{}) {
		d.opts.Log.InfoContext(ctx, "directory is swept", "directory", d.opts.Path, "trashed", done.Trashed.Blobs, "trashed_bytes", done.Trashed.Bytes,
			"purged", done.Purged.Blobs, "purged_bytes", done.Purged.Bytes, "aborted_ingests", done.Aborted)
	}
	return err
}

func (d *Directory) sweep(ctx context.Context, urgent bool) (done Swept, err error) {
	root, err := d.open()
	if missing(err) {
		return done, nil
	}
	if err != nil {
		return done, err
	}
	defer func() { _ = root.Close() }() // all is done by calls that were looked at
	grace := d.opts.Grace
	if urgent {
		grace = 0
	}
	s := &sweep{dir: d, root: root, grace: grace, done: &done}
	if err := s.orphans(ctx); err != nil {
		return done, err
	}
	return done, s.purge(ctx)
}

// sweep is one sweep of a directory.
type sweep struct {
	dir   *Directory
	root  *os.Root
	grace time.Duration
	done  *Swept
}

// orphans moves orphans to the trash, a batch at a time.
func (s *sweep) orphans(ctx context.Context) error {
	blobs, err := scan(s.root) // the costly part, done while all goes on; each batch looks again
	if err != nil {
		return s.dir.explain(err, "listed")
	}
	if err := s.note(ctx, blobs); err != nil {
		return err
	}
	candidates := make([]digest.Digest, 0, len(blobs))
	for blob := range blobs {
		candidates = append(candidates, blob)
	}
	slices.Sort(candidates)
	for {
		due, err := s.due(ctx, candidates, nil)
		if err != nil || len(due) == 0 && s.ingestsDue() == nil {
			return err
		}
		part := due[:min(len(due), batch)]
		if err := s.dir.between(ctx, s.root, func() error { return s.move(ctx, part) }); err != nil {
			return err
		}
		if len(due) <= batch {
			return nil
		}
		candidates = due[batch:]
	}
}

// note notes since when blobs are orphans, restores what is reached again, and ends the
// leases that have expired.
func (s *sweep) note(ctx context.Context, blobs map[digest.Digest]blobInfo) error {
	return s.dir.guarded(ctx, s.root, func() error {
		if err := s.dir.storeWaiting(s.root); err != nil {
			return err
		}
		if err := s.expire(); err != nil {
			return err
		}
		live, _, err := s.restored(ctx)
		if err != nil {
			return err
		}
		book, err := readLedger(s.root)
		if err != nil {
			return err
		}
		now, orphans := s.dir.now(), map[digest.Digest]time.Time{}
		for blob := range blobs {
			if _, reached := live.blobs[blob]; reached {
				continue
			}
			orphans[blob] = now
			if since, known := book.Orphans[blob]; known {
				orphans[blob] = since
			}
		}
		if len(orphans)+len(book.Orphans) == 0 {
			return nil
		}
		book.Orphans = orphans
		failpoint.Hit(failLedger)
		return book.write(s.root)
	})
}

// expire ends the leases whose time is over: their holders were used till then.
func (s *sweep) expire() error {
	all, err := storedLeases(s.root)
	if err != nil {
		return err
	}
	for _, l := range all {
		if s.dir.lives(l) {
			continue
		}
		if err := end(s.root, l, l.Expires); err != nil {
			return err
		}
	}
	return nil
}

// due are the candidates that may go now.
func (s *sweep) due(ctx context.Context, candidates []digest.Digest, gone trash) (due []digest.Digest, err error) {
	live, err := s.dir.live(ctx, s.root, gone)
	if err != nil {
		return nil, err
	}
	book, err := readLedger(s.root)
	if err != nil {
		return nil, s.dir.explain(err, "read")
	}
	until := s.dir.now().Add(-s.grace)
	for _, blob := range candidates {
		if _, reached := live.blobs[blob]; reached {
			continue
		}
		since, known := book.Orphans[blob]
		info, err := s.root.Lstat(blobPath(blob))
		if err != nil || !known || since.After(until) || info.ModTime().After(until) || live.young(info.ModTime()) {
			continue
		}
		due = append(due, blob)
	}
	return due, nil
}

// move moves a batch to the trash: those that may still go.
func (s *sweep) move(ctx context.Context, part []digest.Digest) error {
	if err := s.abort(); err != nil {
		return err
	}
	gone, err := readTrash(s.root)
	if err != nil {
		return err
	}
	due, err := s.due(ctx, part, gone)
	if err != nil || len(due) == 0 {
		return err
	}
	moment := stampDir(trashDir, s.dir.now())
	if err := makeDir(s.root, moment); err != nil {
		return err
	}
	for _, blob := range due {
		info, err := s.root.Lstat(blobPath(blob))
		if missing(err) {
			continue
		}
		if err == nil {
			err = discard(s.root, blob, moment)
		}
		if err != nil {
			return err
		}
		s.done.Trashed.add(Amount{1, info.Size()})
	}
	return nil
}

// purge removes for good what has been in the trash for the grace. What is reached
// again is put back before; and as long as an export lives that began before a blob
// went, the blob stays.
func (s *sweep) purge(ctx context.Context) error {
	for {
		var amount Amount
		if err := s.dir.guarded(ctx, s.root, func() error {
			live, gone, err := s.restored(ctx)
			if err != nil {
				return err
			}
			until := s.dir.now().Add(-s.grace)
			for _, l := range live.leases {
				if l.Mode == Export && l.Created.Before(until) {
					until = l.Created
				}
			}
			amount, err = gone.purge(s.root, until, batch)
			if err != nil {
				return err
			}
			return s.forgetCorrupt()
		}); err != nil {
			return err
		}
		s.done.Purged.add(amount)
		if amount.Blobs < batch {
			return nil
		}
	}
}

// forgetCorrupt removes what a repair has taken out, after the grace.
func (s *sweep) forgetCorrupt() error {
	moments, err := readDir(s.root, corruptDir)
	if err != nil {
		return err
	}
	for _, moment := range moments {
		if at, ok := stampOf(moment.Name()); ok && at.Before(s.dir.now().Add(-s.grace)) {
			if err := s.root.RemoveAll(corruptDir + "/" + moment.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// ingestsDue are the downloads that never ended: nothing was written to them for the
// grace.
func (s *sweep) ingestsDue() (due []string) {
	return ingestsBefore(s.root, s.dir.now().Add(-max(s.grace, minIngest)))
}

// minIngest is how long an ingest may rest, also when the disk is nearly full: a client
// before v0.34 holds no lock while it writes.
const minIngest = time.Minute

func ingestsBefore(root *os.Root, until time.Time) (due []string) {
	all, err := readDir(root, ingestDir)
	if err != nil {
		return nil
	}
	for _, one := range all {
		name := path.Join(ingestDir, one.Name())
		if last := lastWrite(root, name); last.Before(until) {
			due = append(due, name)
		}
	}
	return due
}

// lastWrite is when a file of a directory was written last, or the directory itself.
func lastWrite(root *os.Root, name string) (last time.Time) {
	if info, err := root.Lstat(name); err == nil {
		last = info.ModTime()
	}
	files, err := readDir(root, name)
	if err != nil {
		return last
	}
	for _, file := range files {
		if info, err := file.Info(); err == nil && info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last
}

// abort removes the ingests that are due.
func (s *sweep) abort() error {
	for _, name := range s.ingestsDue() {
		if err := s.root.RemoveAll(name); err != nil {
			return err
		}
		s.done.Aborted++
	}
	return nil
}

// live is what stays.
type live struct {
	reach
	leases []Lease
}

// live is what the index and the leases reach; a manifest that is in the trash is put
// back. When one cannot be read, that is a FAILED_PRECONDITION fault: what it reaches
// would be taken for garbage.
func (d *Directory) live(ctx context.Context, root *os.Root, gone trash) (live, error) {
	l := live{reach: newReach()}
	index, _, err := d.readIndex(ctx, root)
	if err != nil {
		return l, err
	}
	if l.leases, err = d.leases(root); err != nil {
		return l, d.explain(err, "read")
	}
	roots := slices.Clone(index.Manifests)
	for _, lease := range l.leases {
		if lease.Digest != "" {
			roots = append(roots, lease.manifest())
		}
	}
	for _, m := range roots {
		if err := l.follow(root, m, func(d digest.Digest) (bool, error) { return gone.restore(root, d) }); err != nil {
			return l, d.explain(err, "read")
		}
	}
	if len(l.bad) > 0 {
		return l, fault.New(fault.FailedPrecondition, "WRONG_STATE",
			"directory "+d.opts.Path+" has manifests that cannot be read: "+strings.Join(textOf(l.bad), ", "),
			"nothing is collected as long as it is so, for what they reach is not known; `kiln clean-cache` takes them out")
	}
	return l, nil
}

func textOf(all []digest.Digest) (text []string) {
	for _, d := range all {
		text = append(text, d.String())
	}
	return text
}

// restored puts back all that is reached and lies in the trash, and returns what is
// reached and what is in the trash then.
func (s *sweep) restored(ctx context.Context) (live, trash, error) {
	gone, err := readTrash(s.root)
	if err != nil {
		return live{}, nil, err
	}
	l, err := s.dir.live(ctx, s.root, gone)
	if err != nil {
		return l, nil, err
	}
	for d := range gone {
		if _, reached := l.blobs[d]; reached {
			if _, err := gone.restore(s.root, d); err != nil {
				return l, nil, err
			}
			delete(gone, d) // what is left of it is a copy
		}
	}
	return l, gone, nil
}

// young reports whether a blob of that time may be of an export that has a lease.
func (l live) young(written time.Time) bool {
	return slices.ContainsFunc(l.leases, func(lease Lease) bool {
		return lease.Mode == Export && written.After(lease.Created.Add(-young))
	})
}
