// Package usage adds up what caches hold.
package usage

import (
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Totals are sums over records. Bytes are those of the records themselves.
type Totals struct {
	Records      int64
	Bytes        int64
	SharedBytes  int64
	InUseRecords int64
	InUseBytes   int64
	OldestUse    time.Time // the earliest LastActive; zero without records
}

// ReclaimableBytes are those of records that no build uses: what a prune of
// everything would free at most.
func (t Totals) ReclaimableBytes() int64 { return t.Bytes - t.InUseBytes }

// CountedBytes are those that BuildKit compares with the bound of a prune: the
// bytes of all records that are not shared.
func (t Totals) CountedBytes() int64 { return t.Bytes - t.SharedBytes }

// With is the totals with one more record.
func (t Totals) With(r cache.Record) Totals {
	one := Totals{Records: 1, Bytes: max(r.Bytes, 0), OldestUse: r.LastActive()}
	if r.Shared {
		one.SharedBytes = one.Bytes
	}
	if r.InUse {
		one.InUseRecords, one.InUseBytes = 1, one.Bytes
	}
	return t.Plus(one)
}

// Plus is the sum of both.
func (t Totals) Plus(o Totals) Totals {
	t.Records += o.Records
	t.Bytes += o.Bytes
	t.SharedBytes += o.SharedBytes
	t.InUseRecords += o.InUseRecords
	t.InUseBytes += o.InUseBytes
	if t.OldestUse.IsZero() || (!o.OldestUse.IsZero() && o.OldestUse.Before(t.OldestUse)) {
		t.OldestUse = o.OldestUse
	}
	return t
}

// OfType is what the records of one type take.
type OfType struct {
	Type cache.Type
	Totals
}

// Snapshot is what one cache held at one time.
type Snapshot struct {
	Time  time.Time
	Total Totals
	Types []OfType // in the order of cache.Types, without those that have no records
}

// Summarize adds up a listing. Bytes that several records have in common count in the
// total, and in no type; those that are of no record are a type of their own, and not in
// the total, which is what the policy sees.
func Summarize(l cache.Listing) Snapshot {
	byType := map[cache.Type]Totals{}
	snapshot := Snapshot{Time: l.Time}
	for _, r := range l.Records {
		byType[r.Type] = byType[r.Type].With(r)
		snapshot.Total = snapshot.Total.With(r)
	}
	for _, c := range l.Common {
		snapshot.Total.Bytes += c.Bytes
	}
	if l.Uncounted > 0 {
		byType[cache.Uncounted] = Totals{Bytes: l.Uncounted}
	}
	for _, t := range cache.Types() {
		if totals, ok := byType[t]; ok {
			snapshot.Types = append(snapshot.Types, OfType{Type: t, Totals: totals})
		}
	}
	return snapshot
}
