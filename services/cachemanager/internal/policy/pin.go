package policy

import (
	"slices"
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Holds returns how many records a pin keeps, without those that they are made upon. It is not known
// when a cache is away that the pin may be about.
func (p Pin) Holds(listings []cache.Listing, away []cache.Ref, now time.Time) (records int64, known bool) {
	if slices.ContainsFunc(away, p.mayBeOn) {
		return 0, false
	}
	for _, l := range listings {
		for _, r := range l.Records {
			if p.Match == nil && p.Cache == l.Cache && p.Record == r.ID || p.Match != nil && p.Match.Fits(l.Cache, r, now) {
				records++
			}
		}
	}
	return records, true
}

// mayBeOn reports whether a pin may keep a record of a cache.
func (p Pin) mayBeOn(ref cache.Ref) bool {
	if p.Match == nil {
		return p.Cache == ref
	}
	return p.Match.fitsPlace(ref)
}
