package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Mode is what a lease is for.
type Mode string

// The modes.
const (
	Import Mode = "import" // a build reads from the tag
	Export Mode = "export" // a build writes to it
)

// Lease keeps a tag, and what it reached when the lease was taken, until it ends.
type Lease struct {
	ID        string        `json:"id"`
	Tag       string        `json:"tag"`
	Mode      Mode          `json:"mode"`
	Holder    string        `json:"holder,omitempty"` // for people
	Project   string        `json:"project,omitempty"`
	Created   time.Time     `json:"created"`
	Expires   time.Time     `json:"expires"`
	TTL       time.Duration `json:"ttl"`
	RequestID string        `json:"request_id,omitempty"`
	// Digest is that of the manifest that the tag had, of which all was there. Empty:
	// there was none.
	Digest    digest.Digest `json:"digest,omitempty"`
	MediaType string        `json:"media_type,omitempty"`
}

// manifest is what the lease holds.
func (l Lease) manifest() ocispecs.Descriptor {
	return ocispecs.Descriptor{Digest: l.Digest, MediaType: l.MediaType}
}

// maxLeases bounds the leases, each of which every pass looks at.
const maxLeases = 10_000

// Acquire takes a lease. All that the tag reaches is there when it returns, and stays
// until the lease ends; an import of the digest that the lease has needs no look at
// the index any more. With a request id that a lease has already, that one is returned
// if it is the same.
func (d *Directory) Acquire(ctx context.Context, want Lease) (Lease, error) {
	want.ID = uuid.NewString()
	if want.RequestID != "" {
		sum := sha256.Sum256([]byte(want.RequestID))
		want.ID = "r" + hex.EncodeToString(sum[:16])
	}
	root, err := d.open()
	if missing(err) {
		return d.wait(want)
	}
	if err != nil {
		return Lease{}, err
	}
	defer func() { _ = root.Close() }() // all is written
	err = d.guarded(ctx, root, func() error {
		if err := d.storeWaiting(root); err != nil {
			return err
		}
		if known, err := readLease(root, want.ID); err == nil && d.lives(known) {
			want, err = want.orKnown(known)
			return err
		}
		return d.grant(ctx, root, &want)
	})
	return want, err
}

// orKnown returns the lease that has the request id already, or an ALREADY_EXISTS fault if
// another one was asked for.
func (l Lease) orKnown(known Lease) (Lease, error) {
	if known.Tag == l.Tag && known.Mode == l.Mode {
		return known, nil
	}
	clash := fault.New(fault.AlreadyExists, "ALREADY_EXISTS", fmt.Sprintf("request_id %q belongs to another lease", l.RequestID),
		"send the same request again to have the same lease, or choose a new request_id for a new one")
	clash.Field, clash.Value = "request_id", l.RequestID
	return l, clash
}

// grant makes the tag whole and stores the lease.
func (d *Directory) grant(ctx context.Context, root *os.Root, l *Lease) error {
	live, err := d.leases(root)
	if err != nil {
		return err
	}
	if len(live) >= maxLeases {
		return fault.New(fault.ResourceExhausted, "LIMIT_REACHED", fmt.Sprintf("directory %s has %d leases, the limit", d.opts.Path, maxLeases),
			"let those that hold them release them; a lease that is not renewed ends by itself")
	}
	index, _, err := d.readIndex(ctx, root)
	if err != nil {
		return err
	}
	m, found := find(index, l.Tag)
	if l.Digest != "" { // which a lease held that was lost
		m, found = manifestAt(root, index, l.Digest)
	}
	l.Digest, l.MediaType = "", ""
	if found {
		whole, err := restoreTag(root, m)
		if err != nil {
			return err
		}
		if whole {
			l.Digest, l.MediaType = m.Digest, m.MediaType
		}
	}
	l.Created = d.now()
	l.Expires = l.Created.Add(l.TTL)
	return writeLease(root, *l)
}

// Renew makes a lease last longer, from now on, by its own ttl when none is given.
// One that is not there, or has expired, is a NOT_FOUND fault.
func (d *Directory) Renew(ctx context.Context, id string, ttl time.Duration) (l Lease, err error) {
	root, err := d.open()
	if missing(err) {
		return d.renewWaiting(id, ttl)
	}
	if err != nil {
		return Lease{}, err
	}
	defer func() { _ = root.Close() }() // all is written
	err = d.guarded(ctx, root, func() error {
		if err := d.storeWaiting(root); err != nil {
			return err
		}
		l, err = readLease(root, id)
		if missing(err) || err == nil && !d.lives(l) {
			return noLease(id)
		}
		if err != nil {
			return err
		}
		if ttl > 0 {
			l.TTL = ttl
		}
		l.Expires = d.now().Add(l.TTL)
		return writeLease(root, l)
	})
	return l, err
}

func noLease(id string) error {
	return fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no lease %q", id),
		"it has expired, or was released: take a new one with AcquireLease")
}

// Release ends a lease, and reports whether there was one. What an export has put in
// its tag is there when it returns.
func (d *Directory) Release(ctx context.Context, id string) (known bool, err error) {
	root, err := d.open()
	if missing(err) {
		return d.dropWaiting(id), nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = root.Close() }() // all is written
	err = d.guarded(ctx, root, func() error {
		if err := d.storeWaiting(root); err != nil {
			return err
		}
		l, err := readLease(root, id)
		if missing(err) {
			return nil
		}
		if err != nil {
			return err
		}
		known = true
		if index, _, err := d.readIndex(ctx, root); err != nil {
			return err
		} else if m, found := find(index, l.Tag); found && l.Mode == Export {
			if _, err := restoreTag(root, m); err != nil {
				return err
			}
		}
		return end(root, l, d.now())
	})
	return known, err
}

// end notes the use that a lease was and removes it.
func end(root *os.Root, l Lease, at time.Time) error {
	book, err := readLedger(root)
	if err != nil {
		return err
	}
	book.used(l.Tag, l.Project, at)
	if err := book.write(root); err != nil {
		return err
	}
	if err := root.Remove(leasePath(l.ID)); !missing(err) {
		return err
	}
	return nil
}

// Leases are the ids of leases by the tag that each holds.
func (d *Directory) Leases(context.Context) (map[string]string, error) {
	root, err := d.open()
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }() // opened for reading
	live, err := d.leases(root)
	if err != nil {
		return nil, d.explain(err, "read")
	}
	byTag := map[string]string{}
	for _, l := range live {
		byTag[l.Tag] = l.ID
	}
	return byTag, nil
}

// leases are those that have not expired.
func (d *Directory) leases(root *os.Root) (live []Lease, err error) {
	all, err := storedLeases(root)
	for _, l := range append(all, d.allWaiting()...) {
		if d.lives(l) {
			live = append(live, l)
		}
	}
	return live, err
}

// lives reports whether a lease holds its tag. One of before this process began could not be renewed
// while the cache manager was away: its time begins anew with the process.
func (d *Directory) lives(l Lease) bool {
	now := d.now()
	return l.Expires.After(now) || l.Created.Before(d.began) && d.began.Add(l.TTL).After(now)
}

// storedLeases are all leases that are stored, in any order.
func storedLeases(root *os.Root) (all []Lease, err error) {
	files, err := readDir(root, leasesDir)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		id, ok := strings.CutSuffix(file.Name(), leaseSuffix)
		if !ok {
			continue // of a process that was killed while it wrote
		}
		l, err := readLease(root, id)
		if missing(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

const leaseSuffix = ".json"

func leasePath(id string) string { return leasesDir + "/" + id + leaseSuffix }

// leaseID reports whether an id may be that of a lease, and so the name of its file.
func leaseID(id string) bool {
	return id != "" && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func readLease(root *os.Root, id string) (l Lease, err error) {
	if !leaseID(id) {
		return l, os.ErrNotExist
	}
	body, err := root.ReadFile(leasePath(id))
	if err != nil {
		return l, err
	}
	err = json.Unmarshal(body, &l)
	return l, err
}

func writeLease(root *os.Root, l Lease) error {
	if err := makeDir(root, leasesDir); err != nil {
		return err
	}
	body, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return replaceOwn(root, leasePath(l.ID), body, toDisk)
}
