package plan_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

// rec is a record that was used some hours ago.
func rec(id string, hours int, bytes int64, parents ...string) cache.Record {
	used := now.Add(-time.Duration(hours) * time.Hour)
	return cache.Record{ID: id, Type: cache.Regular, Bytes: bytes, Parents: parents, Created: used.Add(-time.Hour), LastUsed: used, UsageCount: 1}
}

func with(r cache.Record, change func(*cache.Record)) cache.Record {
	change(&r)
	return r
}

func one(records ...cache.Record) []cache.Listing {
	return []cache.Listing{{Cache: cache.Ref{Daemon: "a"}, Time: now, Records: records}}
}

func rules(all ...policy.Rule) policy.Policy {
	for i := range all {
		if all[i].Name == "" {
			all[i].Name = fmt.Sprint("r", i)
		}
	}
	return policy.Policy{Rules: all}
}

// said writes a plan as "b(age) c(bytes) | a(child:b) d(in_use)".
func said(p *plan.Plan) string {
	var goes, stays []string
	for _, v := range p.Verdicts {
		text := fmt.Sprintf("%s(%s", v.Record.ID, v.Reason)
		if v.KeptBy != "" {
			text += ":" + v.KeptBy
		}
		text += ")"
		if v.Remove {
			goes = append(goes, text)
		} else {
			stays = append(stays, text)
		}
	}
	return strings.TrimSpace(strings.Join(goes, " ") + " | " + strings.Join(stays, " "))
}

func TestMake(t *testing.T) {
	inUse := func(r *cache.Record) { r.InUse = true }
	shared := func(r *cache.Record) { r.Shared = true }
	kind := func(k cache.Type) func(*cache.Record) { return func(r *cache.Record) { r.Type = k } }
	of := func(projects ...string) func(*cache.Record) {
		return func(r *cache.Record) { r.Projects = projects }
	}
	keepAge := func(hours int) *policy.Keep { return &policy.Keep{Age: ptr(time.Duration(hours) * time.Hour)} }
	keepBytes := func(n int64) *policy.Keep { return &policy.Keep{Bytes: &n} }
	for name, c := range map[string]struct {
		in   plan.Input
		want string
	}{
		"no rules": {
			plan.Input{Listings: one(rec("a", 100, 5))}, "| a(within_bounds)",
		},
		"age, of whatever type; the boundary stays": {
			plan.Input{
				Listings: one(rec("a", 49, 5), rec("b", 48, 5), with(rec("c", 50, 5), kind(cache.CacheMount)), with(rec("d", 60, 5), kind(cache.GitCheckout))),
				Policy:   rules(policy.Rule{Keep: keepAge(48)}),
			}, "d(age) c(age) a(age) | b(within_bounds)",
		},
		"never used counts from when it was made": {
			plan.Input{
				Listings: one(with(rec("a", 48, 5), func(r *cache.Record) { r.LastUsed = time.Time{} })),
				Policy:   rules(policy.Rule{Keep: keepAge(48)}),
			}, "a(age) |",
		},
		"children before parents": {
			plan.Input{
				Listings: one(rec("base", 90, 5), rec("mid", 80, 5, "base"), rec("leaf", 70, 5, "mid")),
				Policy:   rules(policy.Rule{Keep: keepAge(48)}),
			}, "leaf(age) mid(age) base(age) |",
		},
		"a young child keeps all that it is made upon, and is named": {
			plan.Input{
				Listings: one(rec("base", 90, 5), rec("mid", 80, 5, "base"), rec("leaf", 1, 5, "mid"), rec("other", 60, 5, "base")),
				Policy:   rules(policy.Rule{Keep: keepAge(48)}),
			}, "other(age) | base(child:leaf) mid(child:leaf) leaf(within_bounds)",
		},
		"in use, with its parents": {
			plan.Input{
				Listings: one(rec("base", 90, 5), with(rec("leaf", 80, 5, "base"), inUse), rec("x", 70, 5)),
				Policy:   rules(policy.Rule{Keep: keepAge(48)}),
			}, "x(age) | base(child:leaf) leaf(in_use)",
		},
		"pins keep what they are made upon": {
			plan.Input{
				Listings: one(rec("base", 90, 5), rec("leaf", 80, 5, "base"), with(rec("m", 70, 5), kind(cache.CacheMount)), rec("x", 60, 5)),
				Policy:   rules(policy.Rule{Keep: keepAge(48)}),
				Pins: []policy.Pin{
					{ID: "p1", Cache: cache.Ref{Daemon: "a"}, Record: "leaf"},
					{ID: "p2", Match: &policy.Match{Types: []cache.Type{cache.CacheMount}}},
					{ID: "p3", Cache: cache.Ref{Daemon: "b"}, Record: "x"}, // of another daemon
				},
			}, "x(age) | base(pinned:p1) leaf(pinned:p1) m(pinned:p2)",
		},
		"leases": {
			plan.Input{
				Listings: one(rec("a", 90, 5), rec("b", 80, 5)),
				Policy:   rules(policy.Rule{Keep: keepAge(48)}),
				Leases:   map[cache.Ref]map[string]string{{Daemon: "a"}: {"a": "l1"}},
			}, "b(age) | a(leased:l1)",
		},
		"the least recently used go until it fits": {
			plan.Input{
				Listings: one(rec("a", 3, 40), rec("b", 2, 40), rec("c", 1, 40)),
				Policy:   rules(policy.Rule{Keep: keepBytes(80)}),
			}, "a(bytes) | b(within_bounds) c(within_bounds)",
		},
		"one byte over": {
			plan.Input{
				Listings: one(rec("a", 3, 40), rec("b", 2, 40), rec("c", 1, 41)),
				Policy:   rules(policy.Rule{Keep: keepBytes(80)}),
			}, "a(bytes) b(bytes) | c(within_bounds)",
		},
		"shared bytes count nowhere": {
			plan.Input{
				Listings: one(with(rec("a", 3, 400), shared), rec("b", 2, 40)),
				Policy:   rules(policy.Rule{Keep: keepBytes(80)}),
			}, "| a(within_bounds) b(within_bounds)",
		},
		"age, then size: the guide's prose": {
			plan.Input{
				Listings: one(rec("old", 49, 10), rec("a", 3, 40), rec("b", 2, 40), rec("c", 1, 40)),
				Policy:   policy.Default(48*time.Hour, 80),
			}, "old(age) a(bytes) | b(within_bounds) c(within_bounds)",
		},
		"records": {
			plan.Input{
				Listings: one(rec("a", 3, 0), rec("b", 2, 0), rec("c", 1, 0)),
				Policy:   rules(policy.Rule{Keep: &policy.Keep{Records: ptr(int64(1))}}),
			}, "a(records) b(records) | c(within_bounds)",
		},
		"by type": {
			plan.Input{
				Listings: one(rec("a", 4, 40), rec("b", 3, 40), with(rec("c", 2, 40), kind(cache.CacheMount)), with(rec("d", 9, 40), kind(cache.CacheMount))),
				Policy:   rules(policy.Rule{Keep: &policy.Keep{Bytes: ptr(int64(40)), Scope: policy.PerType}}),
			}, "a(bytes) d(bytes) | b(within_bounds) c(within_bounds)",
		},
		"by project; what two have counts for both": {
			plan.Input{
				Listings: one(with(rec("a", 4, 40), of("x", "y")), with(rec("b", 3, 40), of("x")), with(rec("c", 2, 40), of("y")), rec("d", 9, 99)),
				Policy:   rules(policy.Rule{Keep: &policy.Keep{Bytes: ptr(int64(40)), Scope: policy.PerProject}}),
			}, "a(bytes) | d(within_bounds) b(within_bounds) c(within_bounds)",
		},
		"the fleet": {
			plan.Input{
				Listings: []cache.Listing{
					{Cache: cache.Ref{Daemon: "b"}, Records: []cache.Record{rec("x", 9, 40)}},
					{Cache: cache.Ref{Daemon: "a"}, Records: []cache.Record{rec("x", 1, 40), rec("y", 5, 40)}},
				},
				Policy: rules(policy.Rule{Keep: &policy.Keep{Bytes: ptr(int64(50)), Scope: policy.Fleet}}),
			}, "x(bytes) y(bytes) | x(within_bounds)",
		},
		"each cache on its own": {
			plan.Input{
				Listings: []cache.Listing{
					{Cache: cache.Ref{Daemon: "b"}, Records: []cache.Record{rec("x", 9, 40)}},
					{Cache: cache.Ref{Daemon: "a"}, Records: []cache.Record{rec("z", 1, 40), rec("y", 5, 40)}},
				},
				Policy: rules(policy.Rule{Keep: keepBytes(50)}),
			}, "y(bytes) | x(within_bounds) z(within_bounds)",
		},
		"free disk: from low to high": {
			plan.Input{
				Listings: []cache.Listing{{
					Cache: cache.Ref{Daemon: "a"}, Disk: &cache.Disk{TotalBytes: 1000, FreeBytes: 99},
					Records: []cache.Record{rec("a", 4, 60), rec("b", 3, 60), rec("c", 2, 60)},
				}},
				Policy: rules(policy.Rule{Keep: &policy.Keep{FreeDisk: &policy.FreeDisk{LowBytes: 100, HighBytes: 200}}}),
			}, "a(free_disk) b(free_disk) | c(within_bounds)",
		},
		"enough disk is free": {
			plan.Input{
				Listings: []cache.Listing{{
					Cache: cache.Ref{Daemon: "a"}, Disk: &cache.Disk{FreeBytes: 100}, Records: []cache.Record{rec("a", 4, 60)},
				}},
				Policy: rules(policy.Rule{Keep: &policy.Keep{FreeDisk: &policy.FreeDisk{LowBytes: 100, HighBytes: 200}}}),
			}, "| a(within_bounds)",
		},
		"a disk that is not known": {
			plan.Input{
				Listings: one(rec("a", 4, 60)),
				Policy:   rules(policy.Rule{Keep: &policy.Keep{FreeDisk: &policy.FreeDisk{LowBytes: 100, HighBytes: 200}}}),
			}, "| a(within_bounds)",
		},
		"what earlier rules freed counts": {
			plan.Input{
				Listings: []cache.Listing{{
					Cache: cache.Ref{Daemon: "a"}, Disk: &cache.Disk{FreeBytes: 50}, Records: []cache.Record{rec("a", 90, 60), rec("b", 4, 60)},
				}},
				Policy: rules(policy.Rule{Keep: keepAge(48)}, policy.Rule{Keep: &policy.Keep{FreeDisk: &policy.FreeDisk{LowBytes: 100, HighBytes: 100}}}),
			}, "a(age) | b(within_bounds)",
		},
		"a rule protects from those that follow, not from those before": {
			plan.Input{
				Listings: one(rec("a", 90, 5), with(rec("b", 80, 5), kind(cache.CacheMount)), with(rec("c", 500, 5), kind(cache.CacheMount))),
				Policy: rules(
					policy.Rule{Keep: keepAge(400)},
					policy.Rule{Match: &policy.Match{Types: []cache.Type{cache.CacheMount}}, Protect: true},
					policy.Rule{Keep: keepAge(48)},
				),
			}, "c(age) a(age) | b(protected)",
		},
		"a child that does not match keeps its parent": {
			plan.Input{
				Listings: one(with(rec("p", 90, 5), kind(cache.SourceLocal)), rec("c", 80, 5, "p")),
				Policy:   rules(policy.Rule{Match: &policy.Match{Types: []cache.Type{cache.SourceLocal}}, Keep: keepAge(48)}),
			}, "| p(child:c) c(within_bounds)",
		},
		"a child that a later rule takes lets its parent go": {
			plan.Input{
				Listings: one(rec("p", 90, 5), with(rec("c", 1, 50, "p"), kind(cache.CacheMount))),
				Policy: rules(policy.Rule{Keep: keepAge(48)},
					policy.Rule{Match: &policy.Match{Types: []cache.Type{cache.CacheMount}}, Keep: keepBytes(10)}),
			}, "c(bytes) p(age) |",
		},
		"matches": {
			plan.Input{
				Listings: one(
					with(rec("a", 9, 5), func(r *cache.Record) { r.Description = "mount / from exec /bin/sh -c make" }),
					with(rec("b", 8, 5), func(r *cache.Record) { r.UsageCount = 7 }), with(rec("c", 7, 5), of("web-1")), rec("d", 6, 5)),
				Policy: rules(
					policy.Rule{Match: &policy.Match{Description: regexp.MustCompile(`exec .*make`)}, Keep: keepBytes(0)},
					policy.Rule{Match: &policy.Match{MinUsageCount: ptr(int64(7))}, Keep: keepBytes(0)},
					policy.Rule{Match: &policy.Match{Projects: []string{"web-*"}, Daemons: []string{"a"}}, Keep: keepBytes(0)},
					policy.Rule{Match: &policy.Match{Daemons: []string{"b"}}, Keep: keepBytes(0)},
				),
			}, "a(bytes) b(bytes) c(bytes) | d(within_bounds)",
		},
		"common bytes go with the last that has them": {
			plan.Input{
				Listings: []cache.Listing{{
					Cache:   cache.Ref{Directory: "/c"},
					Records: []cache.Record{rec("t1", 9, 1), rec("t2", 8, 1), rec("t3", 7, 1)},
					Common:  []cache.Common{{Bytes: 100, Records: []string{"t1", "t2"}}},
				}},
				Policy: rules(policy.Rule{Keep: keepBytes(50)}),
			}, "t1(bytes) t2(bytes) | t3(within_bounds)",
		},
		"a budget of records, children first": {
			plan.Input{
				Listings: one(rec("base", 90, 5), rec("leaf", 80, 5, "base"), rec("x", 70, 5)),
				Policy:   policy.Policy{Rules: []policy.Rule{{Name: "r", Keep: keepAge(48)}}, Budget: policy.Budget{Records: ptr(int64(2))}},
			}, "leaf(age) base(age) | x(budget)",
		},
		"a budget of bytes": {
			plan.Input{
				Listings: one(rec("a", 90, 5), rec("b", 80, 5), rec("c", 70, 5)),
				Policy:   policy.Policy{Rules: []policy.Rule{{Name: "r", Keep: keepAge(48)}}, Budget: policy.Budget{Bytes: ptr(int64(9))}},
			}, "a(age) | b(budget) c(budget)",
		},
		"equal in use: the least used, then the largest, then by id": {
			plan.Input{
				Listings: one(rec("d", 9, 5), rec("c", 9, 5), rec("b", 9, 9), with(rec("a", 9, 5), func(r *cache.Record) { r.UsageCount = 2 })),
				Policy:   rules(policy.Rule{Keep: &policy.Keep{Records: ptr(int64(0))}}),
			}, "b(records) c(records) d(records) a(records) |",
		},
		"parents that are not listed, and a record that names itself": {
			plan.Input{
				Listings: one(rec("a", 90, 5, "gone", "a")),
				Policy:   rules(policy.Rule{Keep: keepAge(48)}),
			}, "a(age) |",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.in.Now = now
			if got := said(plan.Make(c.in)); got != strings.TrimSpace(c.want) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// A large bake leaves thousands of builds in a daemon's history within minutes: the default policy
// keeps the newest, and what they hold in the cache stays.
func TestDefaultPolicy_BoundsTheHistory(t *testing.T) {
	records := []cache.Record{rec("layer", 3, 40_000_000)}
	for i := range 1500 {
		records = append(records, with(rec(fmt.Sprintf("history:%04d", i), 1, 0), func(r *cache.Record) {
			r.Type, r.LastUsed = cache.History, now.Add(-time.Hour-time.Duration(i)*time.Second)
		}))
	}
	p := plan.Make(plan.Input{Now: now, Listings: one(records...), Policy: policy.Default(48*time.Hour, 100_000_000)})
	if p.Removes.Records != 500 {
		t.Errorf("%d records go, want the 500 oldest builds", p.Removes.Records)
	}
	for _, v := range p.Verdicts {
		if newest := v.Record.ID < "history:1000"; v.Record.Type == cache.History && v.Remove == newest || v.Record.ID == "layer" && v.Remove {
			t.Fatalf("%s: removed %t, %s", v.Record.ID, v.Remove, v.Explain)
		}
	}
}

// The sums of a plan, and what it says to people.
func TestSumsAndWords(t *testing.T) {
	in := plan.Input{
		Now: now,
		Listings: one(rec("old", 76, 10_000_000), rec("a", 3, 40_000_000), rec("b", 2, 40_000_000), with(rec("c", 1, 40_000_000), func(r *cache.Record) { r.InUse = true }),
			rec("d", 100, 7, "b")),
		Policy: policy.Default(48*time.Hour, 100_000_000),
	}
	p := plan.Make(in)
	if p.Removes != (plan.Amount{Records: 3, Bytes: 50_000_007}) || p.Keeps != (plan.Amount{Records: 2, Bytes: 80_000_000}) || p.RemovesAll {
		t.Errorf("removes %+v, keeps %+v, all %v", p.Removes, p.Keeps, p.RemovesAll)
	}
	want := []plan.RuleAmount{{Rule: "age", Amount: plan.Amount{Records: 2, Bytes: 10_000_007}}, {Rule: "history"}, {Rule: "size", Amount: plan.Amount{Records: 1, Bytes: 40_000_000}}}
	if fmt.Sprint(p.Rules) != fmt.Sprint(want) {
		t.Errorf("rules %+v", p.Rules)
	}
	words := map[string]string{
		"d":   `unused for 4d 4h, longer than the 2d of rule "age"`,
		"old": `unused for 3d 4h, longer than the 2d of rule "age"`,
		"a":   `the cache holds 120 MB, 20 MB more than rule "size" keeps; unused for 3h`,
		"b":   "within all bounds; unused for 2h",
		"c":   "a build uses it",
	}
	for i, v := range p.Verdicts {
		if v.Explain != words[v.Record.ID] {
			t.Errorf("%s: %s", v.Record.ID, v.Explain)
		}
		if want := int64(i) + 1; v.Remove && v.Order != want || !v.Remove && v.Order != 0 {
			t.Errorf("%s: order %d", v.Record.ID, v.Order)
		}
	}
	in.Policy = policy.Default(time.Minute, 1)
	in.Listings[0].Records[2].InUse, in.Listings[0].Records[3].InUse = true, false
	if p := plan.Make(in); !p.RemovesAll {
		t.Error("all goes that may:", said(p))
	}
}

// A daemon whose disk only it knows is told to see to it, and what must stay.
func TestRooms(t *testing.T) {
	listing := func(ref cache.Ref) cache.Listing {
		return cache.Listing{Cache: ref, Time: now, Records: []cache.Record{
			rec("a", 4, 60), rec("base", 9, 60), rec("pinned", 9, 60, "base"), with(rec("busy", 0, 60), func(r *cache.Record) { r.InUse = true }),
			with(rec("mount", 9, 60), func(r *cache.Record) { r.Type = cache.CacheMount }), rec("old", 100, 60),
		}}
	}
	daemon, directory := cache.Ref{Daemon: "d"}, cache.Ref{Directory: "/c"}
	p := rules(policy.Rule{Keep: &policy.Keep{Age: ptr(48 * time.Hour)}}, policy.Rule{
		Match: &policy.Match{Types: []cache.Type{cache.Regular}}, Keep: &policy.Keep{FreeDisk: &policy.FreeDisk{LowBytes: 100, HighBytes: 200}},
	})
	in := plan.Input{Listings: []cache.Listing{listing(daemon), listing(directory)}, Policy: p, Now: now, Pins: []policy.Pin{{ID: "p", Cache: daemon, Record: "pinned"}}}
	want := []plan.Room{{Cache: daemon, Rule: "r1", LowBytes: 100, HighBytes: 200, Except: []string{"base", "mount", "pinned"}}}
	if diff := cmp.Diff(want, plan.Make(in).Rooms); diff != "" {
		t.Error(diff)
	}
	in.Policy.Budget.Records = ptr(int64(5))
	if rooms := plan.Make(in).Rooms; len(rooms) > 0 {
		t.Errorf("beyond a budget: %v", rooms)
	}
}
