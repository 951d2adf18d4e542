package usage

import (
	"cmp"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// HitWindow is how far back builds count for the hit ratio.
const HitWindow = 7 * 24 * time.Hour

// Hits are steps of builds, and those of them that were found in a cache.
type Hits struct{ Cached, Total int64 }

// Group is what the records of one project or image take.
type Group struct {
	Name string // empty: records of which nobody has said whose they are
	Totals
}

// ByProject adds up what the records of each project take, the largest first. A record
// that several projects use counts for each.
func ByProject(listings []cache.Listing) []Group {
	return groups(listings, func(r cache.Record) []string {
		if len(r.Projects) == 0 {
			return []string{""}
		}
		return r.Projects
	})
}

// ByImage adds up what the records of each image take, the largest first. A record that
// is a part of several images counts for each; others count for none.
func ByImage(l cache.Listing) []Group {
	return groups([]cache.Listing{l}, func(r cache.Record) []string { return r.Images })
}

func groups(listings []cache.Listing, names func(cache.Record) []string) (all []Group) {
	byName := map[string]Totals{}
	for _, l := range listings {
		for _, r := range l.Records {
			for _, name := range names(r) {
				byName[name] = byName[name].With(r)
			}
		}
	}
	for name, totals := range byName {
		all = append(all, Group{name, totals})
	}
	slices.SortFunc(all, func(a, b Group) int { return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name, b.Name)) })
	return all
}
