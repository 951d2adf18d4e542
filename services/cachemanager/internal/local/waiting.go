package local

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// The leases on a directory that is not there yet are in memory until somebody has made it. The cache
// manager does not make it: its mode, owner and group would not be those that exports need.

// wait keeps a lease until the directory is there.
func (d *Directory) wait(want Lease) (Lease, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known, there := d.waiting[want.ID]; there && d.lives(known) {
		return want.orKnown(known)
	}
	maps.DeleteFunc(d.waiting, func(_ string, l Lease) bool { return !d.lives(l) })
	if len(d.waiting) >= maxLeases {
		return Lease{}, fault.New(fault.ResourceExhausted, "LIMIT_REACHED", fmt.Sprintf("directory %s has %d leases, the limit", d.opts.Path, maxLeases),
			"let those that hold them release them; a lease that is not renewed ends by itself")
	}
	want.Digest, want.MediaType, want.Created = "", "", d.now()
	want.Expires = want.Created.Add(want.TTL)
	d.waiting[want.ID] = want
	return want, nil
}

// renewWaiting renews a lease that waits, or is a NOT_FOUND fault.
func (d *Directory) renewWaiting(id string, ttl time.Duration) (Lease, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l, there := d.waiting[id]
	if !there || !d.lives(l) {
		return Lease{}, noLease(id)
	}
	if ttl > 0 {
		l.TTL = ttl
	}
	l.Expires = d.now().Add(l.TTL)
	d.waiting[id] = l
	return l, nil
}

// dropWaiting ends a lease that waits, and reports whether there was one.
func (d *Directory) dropWaiting(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, there := d.waiting[id]
	delete(d.waiting, id)
	return there
}

// allWaiting returns the leases that wait.
func (d *Directory) allWaiting() []Lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Values(d.waiting))
}

// storeWaiting stores the leases that wait: the directory is there.
func (d *Directory) storeWaiting(root *os.Root) error {
	for _, l := range d.allWaiting() {
		if err := writeLease(root, l); err != nil {
			return err
		}
		d.dropWaiting(l.ID)
	}
	return nil
}
