package usage

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

func TestSummarize(t *testing.T) {
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	records := []cache.Record{
		{ID: "a", Type: cache.CacheMount, Bytes: 100, Created: day, LastUsed: day.Add(5 * time.Hour)},
		{ID: "b", Type: cache.Regular, Bytes: 30, Created: day.Add(time.Hour), InUse: true, Shared: true},
		{ID: "c", Type: cache.Regular, Bytes: 7, Created: day, LastUsed: day.Add(9 * time.Hour), Shared: true},
		{ID: "d", Type: cache.Regular, Bytes: -1, Created: day.Add(4 * time.Hour)}, // size not known
	}
	regular := Totals{
		Records: 3, Bytes: 37, SharedBytes: 37, InUseRecords: 1, InUseBytes: 30, OldestUse: day.Add(time.Hour),
	}
	want := Snapshot{
		Time:  day,
		Total: Totals{Records: 4, Bytes: 137, SharedBytes: 37, InUseRecords: 1, InUseBytes: 30, OldestUse: day.Add(time.Hour)},
		Types: []OfType{
			{Type: cache.Regular, Totals: regular},
			{Type: cache.CacheMount, Totals: Totals{Records: 1, Bytes: 100, OldestUse: day.Add(5 * time.Hour)}},
		},
	}
	got := Summarize(cache.Listing{Records: records, Time: day})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got.Total.ReclaimableBytes() != 107 || got.Total.CountedBytes() != 100 {
		t.Errorf("reclaimable %d, counted %d", got.Total.ReclaimableBytes(), got.Total.CountedBytes())
	}
	if diff := cmp.Diff(Snapshot{Time: day}, Summarize(cache.Listing{Time: day})); diff != "" {
		t.Error(diff)
	}
}

// An empty cache beside another one does not move the oldest use.
func TestPlusKeepsTheOldestUse(t *testing.T) {
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	some := Totals{Records: 1, OldestUse: day}
	if sum := some.Plus(Totals{}); !sum.OldestUse.Equal(day) {
		t.Error(sum.OldestUse)
	}
	if sum := (Totals{}).Plus(some); !sum.OldestUse.Equal(day) {
		t.Error(sum.OldestUse)
	}
}

// A record that several use counts for each, and one that nobody is known to use for
// nobody.
func TestGroups(t *testing.T) {
	l := cache.Listing{Records: []cache.Record{
		{ID: "a", Bytes: 5, Projects: []string{"app", "web"}, Images: []string{"r/web:1"}},
		{ID: "b", Bytes: 7, Projects: []string{"web"}},
		{ID: "c", Bytes: 1},
	}}
	want := []Group{{"web", Totals{Records: 2, Bytes: 12}}, {"app", Totals{Records: 1, Bytes: 5}}, {"", Totals{Records: 1, Bytes: 1}}}
	if diff := cmp.Diff(want, ByProject([]cache.Listing{l})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Group{{"r/web:1", Totals{Records: 1, Bytes: 5}}}, ByImage(l)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Group{{"web", Totals{Records: 4, Bytes: 24}}, {"app", Totals{Records: 2, Bytes: 10}}, {"", Totals{Records: 2, Bytes: 2}}}, ByProject([]cache.Listing{l, l})); diff != "" {
		t.Error(diff)
	}
}
