// Package lease has the words of leases: references that builds use, and that no run may
// touch meanwhile.
package lease

import (
	"slices"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
)

// Lease is one lease.
type Lease struct {
	ID         string
	References []string // in full, as they were given
	Of         []lastuse.Reference
	Export     bool // a build writes to it; else it reads from it
	Holder     string
	Created    time.Time
	Expires    time.Time
	TTL        time.Duration
	RequestID  string
}

// Set is the leases of one time. It implements plan.Leases.
type Set []Lease

// Lease implements plan.Leases.
func (s Set) Lease(repository string, digest content.Digest, tags []string) string {
	for _, l := range s {
		for _, r := range l.Of {
			if r.Repository == repository && (r.Digest == digest || r.Digest == "" && slices.Contains(tags, r.Tag)) {
				return l.ID
			}
		}
	}
	return ""
}

// Export implements plan.Leases: a build that writes may upload nothing of what the
// repository has already.
func (s Set) Export(repository string) string {
	for _, l := range s {
		if l.Export && slices.ContainsFunc(l.Of, func(r lastuse.Reference) bool { return r.Repository == repository }) {
			return l.ID
		}
	}
	return ""
}
