package plan_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/plan"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
)

// naive is the policy as its contract tells it, with all things counted anew at
// each step: slow, and easy to see through.
type naive struct {
	in   plan.Input
	gone map[string]bool // by cache and id
	kept map[string]bool
	safe map[string]bool // protected from the rules that follow
	out  []string
}

func name(ref cache.Ref, id string) string { return ref.String() + "/" + id }

func simulate(in plan.Input) []string {
	in.Listings = slices.SortedFunc(slices.Values(in.Listings), func(a, b cache.Listing) int { return a.Cache.Compare(b.Cache) })
	n := &naive{in: in, gone: map[string]bool{}, kept: map[string]bool{}}
	n.keep()
	for {
		before := len(n.out)
		n.safe = map[string]bool{}
		for _, rule := range in.Policy.Rules {
			n.rule(rule)
		}
		if len(n.out) == before {
			break
		}
	}
	return n.out
}

func (n *naive) each(do func(l *cache.Listing, r cache.Record)) {
	for i := range n.in.Listings {
		for _, r := range n.in.Listings[i].Records {
			if !n.gone[name(n.in.Listings[i].Cache, r.ID)] {
				do(&n.in.Listings[i], r)
			}
		}
	}
}

func (n *naive) keep() {
	n.each(func(l *cache.Listing, r cache.Record) {
		for _, pin := range n.in.Pins {
			if pin.Match != nil && pin.Match.Fits(l.Cache, r, n.in.Now) || pin.Match == nil && pin.Cache == l.Cache && pin.Record == r.ID {
				n.keepUp(l, r.ID)
			}
		}
		if r.InUse || n.in.Leases[l.Cache][r.ID] != "" {
			n.kept[name(l.Cache, r.ID)] = true
		}
	})
}

func (n *naive) keepUp(l *cache.Listing, id string) {
	n.kept[name(l.Cache, id)] = true
	for _, r := range l.Records {
		if r.ID == id {
			for _, parent := range r.Parents {
				n.keepUp(l, parent)
			}
		}
	}
}

// first is the record of those that fit that goes first, if any may go.
func (n *naive) first(fits func(*cache.Listing, cache.Record) bool) (ref cache.Ref, record cache.Record, ok bool) {
	n.each(func(l *cache.Listing, r cache.Record) {
		if !fits(l, r) || n.kept[name(l.Cache, r.ID)] || n.safe[name(l.Cache, r.ID)] {
			return
		}
		for _, child := range l.Records {
			if slices.Contains(child.Parents, r.ID) && !n.gone[name(l.Cache, child.ID)] {
				return
			}
		}
		order := cmp.Or(r.LastActive().Compare(record.LastActive()), cmp.Compare(r.UsageCount, record.UsageCount),
			cmp.Compare(counted(record), counted(r)), l.Cache.Compare(ref), strings.Compare(r.ID, record.ID))
		if !ok || order < 0 {
			ref, record, ok = l.Cache, r, true
		}
	})
	return ref, record, ok
}

func counted(r cache.Record) int64 {
	if r.Shared {
		return 0
	}
	return max(0, r.Bytes)
}

// while removes what goes first of those that fit, as long as more is wanted.
func (n *naive) while(more func() bool, fits func(*cache.Listing, cache.Record) bool) {
	for more() {
		ref, r, ok := n.first(fits)
		if !ok {
			return
		}
		n.gone[name(ref, r.ID)] = true
		n.out = append(n.out, name(ref, r.ID))
	}
}

func (n *naive) rule(rule policy.Rule) {
	fits := func(l *cache.Listing, r cache.Record) bool { return rule.Match.Fits(l.Cache, r, n.in.Now) }
	if rule.Protect {
		n.each(func(l *cache.Listing, r cache.Record) {
			if fits(l, r) {
				n.safe[name(l.Cache, r.ID)] = true
			}
		})
		return
	}
	if age := rule.Keep.Age; age != nil {
		n.while(func() bool { return true }, func(l *cache.Listing, r cache.Record) bool {
			return fits(l, r) && n.in.Now.Sub(r.LastActive()) > *age
		})
	}
	for _, group := range n.groups(rule) {
		in := func(l *cache.Listing, r cache.Record) bool {
			return fits(l, r) && slices.Contains(groupsOf(rule, l, r), group)
		}
		// What builds hold does not count where it is beyond the bound by itself.
		busyBytes, busyRecords := n.count(func(l *cache.Listing, r cache.Record) bool { return in(l, r) && n.busy(l, r) })
		if limit := rule.Keep.Bytes; limit != nil {
			most := *limit
			if busyBytes > most {
				most += busyBytes
			}
			n.while(func() bool { b, _ := n.count(in); return b > most }, in)
		}
		if limit := rule.Keep.Records; limit != nil {
			most := *limit
			if busyRecords > most {
				most += busyRecords
			}
			n.while(func() bool { _, c := n.count(in); return c > most }, in)
		}
	}
	if disk := rule.Keep.FreeDisk; disk != nil {
		for i := range n.in.Listings {
			l := &n.in.Listings[i]
			if l.Disk == nil || n.free(l) >= disk.LowBytes {
				continue
			}
			n.while(func() bool { return n.free(l) < disk.HighBytes }, func(other *cache.Listing, r cache.Record) bool { return other == l && fits(l, r) })
		}
	}
}

// busy reports whether a build uses a record or one that is made upon it.
func (n *naive) busy(l *cache.Listing, r cache.Record) bool {
	return r.InUse || slices.ContainsFunc(l.Records, func(child cache.Record) bool {
		return slices.Contains(child.Parents, r.ID) && n.busy(l, child)
	})
}

func groupsOf(rule policy.Rule, l *cache.Listing, r cache.Record) []string {
	switch rule.Keep.Scope {
	case policy.Fleet:
		return []string{""}
	case policy.PerType:
		return []string{name(l.Cache, string(r.Type))}
	case policy.PerProject:
		var all []string
		for _, p := range r.Projects {
			all = append(all, name(l.Cache, p))
		}
		return all
	default:
		return []string{l.Cache.String()}
	}
}

// groups are in the order in which the first of their records comes by cache and id.
func (n *naive) groups(rule policy.Rule) (all []string) {
	type named struct {
		l *cache.Listing
		r cache.Record
	}
	var records []named
	n.each(func(l *cache.Listing, r cache.Record) { records = append(records, named{l, r}) })
	slices.SortFunc(records, func(a, b named) int {
		return cmp.Or(a.l.Cache.Compare(b.l.Cache), strings.Compare(a.r.ID, b.r.ID))
	})
	for _, one := range records {
		if !rule.Match.Fits(one.l.Cache, one.r, n.in.Now) {
			continue
		}
		for _, group := range groupsOf(rule, one.l, one.r) {
			if !slices.Contains(all, group) {
				all = append(all, group)
			}
		}
	}
	return all
}

func (n *naive) count(in func(*cache.Listing, cache.Record) bool) (bytes, records int64) {
	counts := map[string]bool{}
	n.each(func(l *cache.Listing, r cache.Record) {
		if in(l, r) {
			records++
			bytes += counted(r)
			counts[name(l.Cache, r.ID)] = true
		}
	})
	for i := range n.in.Listings {
		for _, c := range n.in.Listings[i].Common {
			if slices.ContainsFunc(c.Records, func(id string) bool { return counts[name(n.in.Listings[i].Cache, id)] }) {
				bytes += c.Bytes
			}
		}
	}
	return bytes, records
}

// free is the disk that is free now.
func (n *naive) free(l *cache.Listing) int64 {
	free := l.Disk.FreeBytes
	for _, r := range l.Records {
		if n.gone[name(l.Cache, r.ID)] {
			free += counted(r)
		}
	}
	for _, c := range l.Common {
		if !slices.ContainsFunc(c.Records, func(id string) bool { return !n.gone[name(l.Cache, id)] }) {
			free += c.Bytes
		}
	}
	return free
}

var types = []cache.Type{cache.Regular, cache.SourceLocal, cache.CacheMount}

func drawListing(t *rapid.T, ref cache.Ref) cache.Listing {
	l := cache.Listing{Cache: ref, Time: now}
	for i := range rapid.IntRange(0, 12).Draw(t, "records") {
		r := cache.Record{
			ID: fmt.Sprintf("r%02d", i), Type: rapid.SampledFrom(types).Draw(t, "type"), Bytes: rapid.Int64Range(-1, 20).Draw(t, "bytes"),
			Created: now.Add(-time.Duration(rapid.IntRange(0, 6).Draw(t, "made")) * time.Hour), UsageCount: rapid.IntRange(0, 2).Draw(t, "count"),
			Shared: rapid.IntRange(0, 5).Draw(t, "shared") == 0, InUse: rapid.IntRange(0, 7).Draw(t, "in use") == 0,
			Projects: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x", "y"}), 0, 2, rapid.ID[string]).Draw(t, "projects"),
		}
		if rapid.Bool().Draw(t, "used") {
			r.LastUsed = now.Add(-time.Duration(rapid.IntRange(0, 6).Draw(t, "used at")) * time.Hour)
		}
		for p := range i {
			if rapid.IntRange(0, 3).Draw(t, "parent") == 0 {
				r.Parents = append(r.Parents, fmt.Sprintf("r%02d", p))
			}
		}
		l.Records = append(l.Records, r)
	}
	if len(l.Records) > 1 && rapid.Bool().Draw(t, "common") {
		l.Common = []cache.Common{{Bytes: rapid.Int64Range(0, 30).Draw(t, "common bytes"), Records: []string{"r00", "r01"}}}
	}
	if rapid.Bool().Draw(t, "disk") {
		l.Disk = &cache.Disk{TotalBytes: 1000, FreeBytes: rapid.Int64Range(0, 60).Draw(t, "free")}
	}
	return l
}

func drawMatch(t *rapid.T) *policy.Match {
	if rapid.Bool().Draw(t, "all") {
		return nil
	}
	m := &policy.Match{Types: rapid.SliceOfNDistinct(rapid.SampledFrom(types), 0, 2, rapid.ID[cache.Type]).Draw(t, "types")}
	if rapid.Bool().Draw(t, "by age") {
		m.MinAge = ptr(time.Duration(rapid.IntRange(0, 4).Draw(t, "min age")) * time.Hour)
	}
	if rapid.Bool().Draw(t, "by count") {
		m.MaxUsageCount = ptr(rapid.Int64Range(0, 2).Draw(t, "max count"))
	}
	if rapid.Bool().Draw(t, "by daemon") {
		m.Daemons = []string{"a"}
	}
	return m
}

func drawRule(t *rapid.T, i int) policy.Rule {
	rule := policy.Rule{Name: fmt.Sprint("rule", i), Match: drawMatch(t)}
	if rapid.IntRange(0, 5).Draw(t, "protect") == 0 {
		rule.Protect = true
		return rule
	}
	k := &policy.Keep{Scope: rapid.SampledFrom([]policy.Scope{policy.PerCache, policy.Fleet, policy.PerProject, policy.PerType}).Draw(t, "scope")}
	if rapid.Bool().Draw(t, "age") {
		k.Age = ptr(time.Duration(rapid.IntRange(0, 6).Draw(t, "keep age")) * time.Hour)
	}
	if rapid.Bool().Draw(t, "bytes") {
		k.Bytes = ptr(rapid.Int64Range(0, 100).Draw(t, "keep bytes"))
	}
	if rapid.Bool().Draw(t, "records") {
		k.Records = ptr(rapid.Int64Range(0, 10).Draw(t, "keep records"))
	}
	if rapid.Bool().Draw(t, "free") {
		low := rapid.Int64Range(0, 80).Draw(t, "low")
		k.FreeDisk = &policy.FreeDisk{LowBytes: low, HighBytes: low + rapid.Int64Range(0, 40).Draw(t, "high")}
	}
	rule.Keep = k
	return rule
}

func drawInput(t *rapid.T) plan.Input {
	in := plan.Input{Now: now, Listings: []cache.Listing{drawListing(t, cache.Ref{Daemon: "a"})}}
	if rapid.Bool().Draw(t, "two") {
		in.Listings = append(in.Listings, drawListing(t, cache.Ref{Directory: "/b"}))
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "rules") {
		in.Policy.Rules = append(in.Policy.Rules, drawRule(t, i))
	}
	if rapid.IntRange(0, 2).Draw(t, "pinned") == 0 {
		in.Pins = append(in.Pins, policy.Pin{ID: "p", Cache: cache.Ref{Daemon: "a"}, Record: "r03"})
	}
	if rapid.IntRange(0, 3).Draw(t, "pins") == 0 {
		in.Pins = append(in.Pins, policy.Pin{ID: "q", Match: drawMatch(t)})
	}
	if rapid.IntRange(0, 3).Draw(t, "leased") == 0 {
		in.Leases = map[cache.Ref]map[string]string{{Directory: "/b"}: {"r02": "l"}}
	}
	return in
}

func victims(p *plan.Plan) []string {
	var all []string
	for _, v := range p.Verdicts {
		if v.Remove {
			all = append(all, name(v.Cache, v.Record.ID))
		}
	}
	return all
}

// A plan is what the slow model says, in the same order, whatever the order of the
// listings; when it has been carried out, the policy removes nothing more; and no
// verdict is without a reason.
func TestPlansAreThoseOfTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		want := simulate(in)
		p := plan.Make(in)
		if got := victims(p); !slices.Equal(got, want) {
			t.Fatalf("goes %v\nwant %v\n%s", got, want, said(p))
		}
		explained(t, in, p)
		rest := in
		rest.Listings = nil
		var freed int64
		for _, l := range in.Listings {
			left := l
			left.Records = slices.DeleteFunc(slices.Clone(l.Records), func(r cache.Record) bool { return slices.Contains(want, name(l.Cache, r.ID)) })
			if l.Disk != nil {
				free := l.Disk.FreeBytes
				for _, v := range p.Verdicts {
					if v.Cache == l.Cache {
						free += v.Frees
					}
				}
				left.Disk = &cache.Disk{FreeBytes: free}
			}
			rand.Shuffle(len(left.Records), func(i, j int) { left.Records[i], left.Records[j] = left.Records[j], left.Records[i] })
			rest.Listings = append(rest.Listings, left)
		}
		for _, v := range p.Verdicts {
			freed += v.Frees
		}
		if p.Removes.Bytes != freed || p.Removes.Records != int64(len(want)) {
			t.Fatalf("sums %+v of %d bytes, %d records", p.Removes, freed, len(want))
		}
		if more := victims(plan.Make(rest)); len(more) > 0 {
			t.Fatalf("when %v are gone, %v go too", want, more)
		}
		for i := range in.Listings {
			rand.Shuffle(len(in.Listings[i].Records), func(a, b int) {
				in.Listings[i].Records[a], in.Listings[i].Records[b] = in.Listings[i].Records[b], in.Listings[i].Records[a]
			})
		}
		slices.Reverse(in.Listings)
		if got := victims(plan.Make(in)); !slices.Equal(got, want) {
			t.Fatalf("in another order %v go, not %v", got, want)
		}
	})
}

// explained checks that each verdict tells a truth.
func explained(t *rapid.T, in plan.Input, p *plan.Plan) {
	byName := map[string]plan.Verdict{}
	for _, v := range p.Verdicts {
		byName[name(v.Cache, v.Record.ID)] = v
	}
	for _, v := range p.Verdicts {
		if v.Explain == "" || v.Remove && (v.Rule == "" || v.Record.InUse) {
			t.Fatalf("%+v", v)
		}
		if v.Reason == plan.Child {
			if child := byName[name(v.Cache, v.KeptBy)]; child.Remove || child.Reason == plan.Child || v.KeptBy == v.Record.ID {
				t.Fatalf("%s is said to be kept by %+v", v.Record.ID, child)
			}
		}
	}
}

// A budget takes the first of the plan, and leaves no child without its parent.
func TestBudgetIsTheBeginning(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		whole := victims(plan.Make(in))
		in.Policy.Budget.Records = ptr(rapid.Int64Range(0, 10).Draw(t, "budget"))
		p := plan.Make(in)
		got := victims(p)
		if want := whole[:min(len(whole), int(*in.Policy.Budget.Records))]; !slices.Equal(got, want) {
			t.Fatalf("goes %v of %v", got, whole)
		}
		for _, v := range p.Verdicts {
			if late := slices.Contains(whole[len(got):], name(v.Cache, v.Record.ID)); late != (v.Reason == plan.OverBudget) {
				t.Fatalf("%+v", v)
			}
		}
	})
}

// large is a listing like that of a busy daemon: chains of layers.
func large(records int) []cache.Listing {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same each time
	l := cache.Listing{Cache: cache.Ref{Daemon: "a"}, Time: now}
	for i := range records {
		r := rec(fmt.Sprintf("%08x%04d", random.Uint32(), i), random.IntN(200), random.Int64N(100_000_000))
		if i > 0 && random.IntN(3) > 0 {
			r.Parents = []string{l.Records[max(0, i-1-random.IntN(10))].ID}
		}
		r.Type = types[random.IntN(len(types))]
		l.Records = append(l.Records, r)
	}
	return []cache.Listing{l}
}

func BenchmarkMake(b *testing.B) {
	for _, n := range []int{2_000, 20_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := plan.Input{Listings: large(n), Policy: policy.Default(48*time.Hour, int64(n)*5_000_000), Now: now}
			removed := int64(0)
			for b.Loop() {
				removed = plan.Make(in).Removes.Records
			}
			b.ReportMetric(float64(removed), "removed")
		})
	}
}
