package gc_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/gc"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func rec(id string, hours, uses int, bytes int64, parents ...string) cache.Record {
	return cache.Record{ID: id, Type: cache.Regular, Bytes: bytes, Parents: parents, Created: now.Add(-100 * time.Hour), LastUsed: now.Add(-time.Duration(hours) * time.Hour), UsageCount: uses}
}

func with(r cache.Record, change func(*cache.Record)) cache.Record {
	change(&r)
	return r
}

// What each rule of BuildKit's removes; "~" stands before what is tied.
func TestSimulate(t *testing.T) {
	size := func(n int64) gc.Rule { return gc.Rule{Spec: gc.Spec{MaxUsedBytes: n}} }
	internal := func(r *cache.Record) { r.Type = cache.Internal }
	for name, c := range map[string]struct {
		records []cache.Record
		disk    *cache.Disk
		rules   []gc.Rule
		want    string
	}{
		"no rules": {[]cache.Record{rec("a", 99, 1, 5)}, nil, nil, ""},
		"the keep duration protects, whatever the size": {
			[]cache.Record{rec("a", 49, 1, 500), rec("b", 47, 1, 500)}, nil,
			[]gc.Rule{{Spec: gc.Spec{KeepDuration: 48 * time.Hour, MaxUsedBytes: 10}}}, "a",
		},
		"without a bound all goes, children first": {
			[]cache.Record{rec("p", 60, 1, 5), rec("c", 50, 1, 5, "p"), rec("young", 1, 1, 5)}, nil,
			[]gc.Rule{{Spec: gc.Spec{KeepDuration: 48 * time.Hour}}}, "c p",
		},
		"never used is not protected": {
			[]cache.Record{with(rec("a", 0, 0, 5), func(r *cache.Record) { r.LastUsed = time.Time{} })}, nil,
			[]gc.Rule{{Spec: gc.Spec{KeepDuration: 48 * time.Hour}}}, "a",
		},
		"down below the bound, not to it": {
			[]cache.Record{rec("a", 3, 1, 10), rec("b", 2, 1, 10), rec("c", 1, 1, 10)}, nil, []gc.Rule{size(20)}, "a b",
		},
		"what is used often stays longer": {
			[]cache.Record{rec("a", 3, 9, 10), rec("b", 2, 1, 10), rec("c", 1, 1, 10)}, nil, []gc.Rule{size(29)}, "b",
		},
		"internal and shared only with all": {
			[]cache.Record{with(rec("a", 9, 1, 10), internal), with(rec("b", 8, 1, 10), func(r *cache.Record) { r.Shared = true }), rec("c", 1, 1, 10)}, nil,
			[]gc.Rule{{Spec: gc.Spec{KeepDuration: time.Minute}}}, "c",
		},
		"with all": {
			[]cache.Record{with(rec("a", 9, 1, 10), internal)}, nil, []gc.Rule{{Spec: gc.Spec{All: true}}}, "a",
		},
		"in use": {
			[]cache.Record{with(rec("a", 9, 1, 10), func(r *cache.Record) { r.InUse = true })}, nil, []gc.Rule{{Spec: gc.Spec{All: true}}}, "",
		},
		"free disk, whose figure stays as it was": {
			[]cache.Record{rec("a", 4, 1, 10), rec("b", 3, 1, 10), rec("c", 2, 1, 10), rec("d", 1, 1, 10)}, &cache.Disk{FreeBytes: 5},
			[]gc.Rule{{Spec: gc.Spec{MinFreeBytes: 14}}, {Spec: gc.Spec{MinFreeBytes: 14}}}, "a b",
		},
		"enough free disk": {
			[]cache.Record{rec("a", 4, 1, 10)}, &cache.Disk{FreeBytes: 50}, []gc.Rule{{Spec: gc.Spec{MinFreeBytes: 14}}}, "a",
		},
		"reserved space": {
			[]cache.Record{rec("a", 4, 1, 10), rec("b", 3, 1, 10), rec("c", 2, 1, 10)}, nil, []gc.Rule{{Spec: gc.Spec{ReservedBytes: 25, MaxUsedBytes: 5}}}, "a",
		},
		"a tie": {
			[]cache.Record{rec("a", 4, 1, 10), rec("b", 4, 1, 10), rec("c", 2, 1, 10)}, nil, []gc.Rule{size(21)}, "~a",
		},
		"from a tie of unequal records on all is open": {
			[]cache.Record{rec("a", 4, 1, 10), rec("b", 4, 1, 20), rec("c", 2, 1, 10)}, nil, []gc.Rule{size(11)}, "~a ~b",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := gc.Simulate(cache.Listing{Cache: cache.Ref{Daemon: "d"}, Records: c.records, Disk: c.disk}, c.rules, now)
			var got []string
			for _, v := range p.Verdicts {
				if v.Explain == "" {
					t.Errorf("no reason: %+v", v)
				}
				if !v.Remove {
					continue
				}
				text := v.Record.ID
				if v.Tie > 0 {
					text = "~" + text
				}
				got = append(got, text)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %v, want %s", got, c.want)
			}
		})
	}
}

func BenchmarkSimulate(b *testing.B) {
	var records []cache.Record
	for i := range 2000 {
		records = append(records, rec(fmt.Sprintf("r%04d", i*7919%2000), i%500, i%7, int64(i)))
	}
	rules := []gc.Rule{{Spec: gc.Spec{MaxUsedBytes: 1_000_000}}}
	for b.Loop() {
		gc.Simulate(cache.Listing{Records: records}, rules, now)
	}
}
