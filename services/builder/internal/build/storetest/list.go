package storetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Values that records have and filters name: few, so that they meet.
var (
	projects = []string{"web", "web-api", "wéb", "db"}
	callers  = []string{"", "alice", "ali%", "ali_e", "ALICE"}
	daemons  = []string{"", "d1", "d2"}
	tags     = []string{"localhost:5000/web:1", "localhost:5000/web:2", "localhost:5000/db", "r.example/web\U0010ffff", "r.example/web"}
	times    = []time.Time{
		start, start.Add(1), start.Add(time.Second), start.In(time.FixedZone("east", 7200)).Add(-time.Hour),
		time.Date(1066, 10, 14, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC),
	}
	states  = []build.State{build.Queued, build.Running, build.Succeeded, build.Failed, build.Cancelled, build.TimedOut, build.Interrupted}
	origins = []build.Origin{build.OriginAPI, build.OriginGateway}
)

// someBuilds fills a store with builds of all kinds and returns their records in
// the order in which they were created.
func someBuilds(t *testing.T, store build.Store, n int) []build.Record {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same in each run
	var all []build.Record
	for i := range n {
		rec := full(fmt.Sprintf("b%02d", i))
		rec.RequestID = ""
		rec.Project, rec.Caller, rec.Daemon = oneOf(random, projects), oneOf(random, callers), oneOf(random, daemons)
		rec.Created, rec.Origin = oneOf(random, times[:4]), oneOf(random, origins)
		rec.State, rec.Ended, rec.Outcome, rec.Tags = build.Queued, time.Time{}, nil, nil
		create(t, store, rec, nil)
		rec.Tags = slices.Compact(slices.Sorted(slices.Values([]string{oneOf(random, tags), oneOf(random, tags)})))[random.IntN(2):]
		if state := oneOf(random, states); state.Final() {
			rec = ended(rec, state, oneOf(random, times[:4]))
		} else {
			rec.State = state
		}
		commit(t, store, rec, nil)
		all = append(all, rec)
	}
	return all
}

func oneOf[T any](random *rand.Rand, list []T) T { return list[random.IntN(len(list))] }

// filters draws a filter of at most that depth.
func filters(depth int) *rapid.Generator[aip.Filter] {
	return rapid.Custom(func(r *rapid.T) aip.Filter {
		kinds := []string{"and", "or", "not", "compare", "compare", "compare"}
		if depth == 0 {
			kinds = kinds[3:]
		}
		switch rapid.SampledFrom(kinds).Draw(r, "kind") {
		case "and":
			return aip.And(rapid.SliceOfN(filters(depth-1), 0, 3).Draw(r, "and"))
		case "or":
			return aip.Or(rapid.SliceOfN(filters(depth-1), 0, 3).Draw(r, "or"))
		case "not":
			return aip.Not{Of: filters(depth-1).Draw(r, "not")}
		}
		return comparison(r)
	})
}

func comparison(r *rapid.T) aip.Compare {
	ops := []aip.Op{aip.Equal, aip.NotEqual, aip.Less, aip.LessOrEqual, aip.Greater, aip.GreaterOrEqual}
	text := map[aip.Field][]string{
		build.FieldProject: projects, build.FieldCaller: callers, build.FieldDaemon: daemons, build.FieldTag: tags,
	}
	field := rapid.SampledFrom([]aip.Field{
		build.FieldState, build.FieldProject, build.FieldOrigin, build.FieldCreateTime,
		build.FieldEndTime, build.FieldTag, build.FieldCaller, build.FieldDaemon,
	}).Draw(r, "field")
	c := aip.Compare{Field: field}
	switch field {
	case build.FieldState:
		c.Value = rapid.SampledFrom(states).Draw(r, "state")
	case build.FieldOrigin:
		c.Value = rapid.SampledFrom(origins).Draw(r, "origin")
	case build.FieldCreateTime, build.FieldEndTime:
		c.Value = rapid.SampledFrom(times).Draw(r, "time")
	default:
		value := rapid.SampledFrom(text[field]).Draw(r, "text")
		if rapid.Bool().Draw(r, "cut") {
			value = value[:rapid.IntRange(0, len(value)).Draw(r, "at")]
		}
		c.Value, ops = value, append(ops, aip.HasPrefix)
	}
	c.Op = rapid.SampledFrom(ops).Draw(r, "op")
	return c
}

func orders() *rapid.Generator[[]aip.Order] {
	fields := rapid.SampledFrom([]aip.Field{
		build.FieldState, build.FieldProject, build.FieldOrigin, build.FieldCreateTime,
		build.FieldEndTime, build.FieldCaller, build.FieldDaemon,
	})
	return rapid.SliceOfNDistinct(rapid.Custom(func(r *rapid.T) aip.Order {
		return aip.Order{Field: fields.Draw(r, "field"), Desc: rapid.Bool().Draw(r, "desc")}
	}), 0, 3, func(o aip.Order) aip.Field { return o.Field })
}

// pages reads all pages of a list, in pages of that size.
func pages(t tester, store build.Store, query build.Query, size int) []build.Record {
	t.Helper()
	var all []build.Record
	for token := ""; ; {
		page, next, err := store.List(t.Context(), query, size, token)
		if err != nil {
			t.Fatalf("listing %+v: %v", query, err)
		}
		if len(page) > size || next != "" && len(page) < size {
			t.Fatalf("a page of %d with next token %q, want %d", len(page), next, size)
		}
		all = append(all, page...)
		if token = next; token == "" {
			return all
		}
	}
}

// The pages of any list, together, are what a plain evaluation of the query over
// the records gives.
func (s suite) listFitsTheQuery(t *testing.T) {
	store := s.fresh(t)
	records := someBuilds(t, store, 60)
	equal(t, "all", pages(t, store, build.Query{}, 1000), list(records, build.Query{}))
	rapid.Check(t, func(r *rapid.T) {
		query := build.Query{Order: orders().Draw(r, "order")}
		if rapid.IntRange(0, 9).Draw(r, "filtered") > 0 {
			query.Filter = filters(3).Draw(r, "filter")
		}
		size := rapid.IntRange(1, 70).Draw(r, "size")
		equal(r, "the list", ids(pages(r, store, query, size)), ids(list(records, query)))
	})
}

// A filter as deep and as wide as a caller may write is no trouble.
func (s suite) listOfLargeFilters(t *testing.T) {
	store := s.fresh(t)
	records := someBuilds(t, store, 10)
	var deep aip.Filter = aip.Compare{Field: build.FieldTag, Op: aip.HasPrefix, Value: "localhost:5000/web"}
	for range 16 {
		deep = aip.Not{Of: aip.Or{deep, aip.Compare{Field: build.FieldState, Op: aip.Equal, Value: build.Failed}}}
	}
	var wide aip.Or
	for n := range 500 {
		wide = append(wide, aip.Compare{Field: build.FieldTag, Op: aip.Equal, Value: fmt.Sprintf("localhost:5000/web:%d", n)})
	}
	for _, filter := range []aip.Filter{deep, wide, aip.And{deep, wide}} {
		query := build.Query{Filter: filter}
		equal(t, "the list", ids(pages(t, store, query, 3)), ids(list(records, query)))
	}
}

// Builds that come and go between two pages do not move the others: each is
// listed once.
func (s suite) listWhileBuildsCome(t *testing.T) {
	for _, order := range [][]aip.Order{nil, {{Field: build.FieldProject}}, {{Field: build.FieldEndTime, Desc: true}}} {
		store := s.fresh(t)
		query := build.Query{Order: order}
		records := someBuilds(t, store, 20)
		want := ids(list(records, query))
		var got []string
		for token, n := "", 0; ; n++ {
			page, next, err := store.List(t.Context(), query, 3, token)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range ids(page) {
				if slices.Contains(want, id) {
					got = append(got, id)
				}
			}
			if token = next; token == "" {
				break
			}
			late := queued(fmt.Sprintf("late%d", n))
			late.Project = oneOf(rand.New(rand.NewPCG(uint64(n), 0)), projects) //nolint:gosec // the same in each run
			create(t, store, late, nil)
		}
		equal(t, "those that were there before", got, want)
	}
}

// A page token is of one query, and of no other.
func (s suite) pageTokens(t *testing.T) {
	store := s.fresh(t)
	someBuilds(t, store, 12)
	web := aip.Compare{Field: build.FieldProject, Op: aip.NotEqual, Value: "web"}
	query := build.Query{Filter: web, Order: []aip.Order{{Field: build.FieldEndTime}}}
	_, token, err := store.List(t.Context(), query, 2, "")
	if err != nil || token == "" {
		t.Fatalf("token %q, error %v", token, err)
	}
	if page, _, err := store.List(t.Context(), query, 5, token); err != nil || len(page) == 0 {
		t.Errorf("with another size: %d builds, error %v", len(page), err)
	}
	others := map[string]build.Query{
		"no filter":      {Order: query.Order},
		"another filter": {Filter: aip.Compare{Field: build.FieldProject, Op: aip.NotEqual, Value: "db"}, Order: query.Order},
		"no order":       {Filter: web},
		"another order":  {Filter: web, Order: []aip.Order{{Field: build.FieldEndTime, Desc: true}}},
		"another field":  {Filter: web, Order: []aip.Order{{Field: build.FieldCreateTime}}},
	}
	for name, other := range others {
		_, _, err := store.List(t.Context(), other, 2, token)
		isFault(t, name, err, fault.InvalidArgument)
	}
	for _, bad := range []string{"x", token[1:], token[:len(token)-1], token + "A", " " + token, "bnVsbA", "e30", "W10"} {
		if bad == token {
			continue
		}
		if _, _, err := store.List(t.Context(), query, 2, bad); err == nil {
			t.Errorf("token %q is taken", bad)
		} else {
			isFault(t, bad, err, fault.InvalidArgument)
		}
	}
}

// A query that no parser makes is an error, not a guess.
func (s suite) badQueries(t *testing.T) {
	store := s.fresh(t)
	someBuilds(t, store, 3)
	for name, query := range map[string]build.Query{
		"field":        {Filter: aip.Compare{Field: "record", Op: aip.Equal, Value: "x"}},
		"op":           {Filter: aip.Compare{Field: build.FieldProject, Op: "LIKE", Value: "x"}},
		"no value":     {Filter: aip.Compare{Field: build.FieldProject, Op: aip.Equal}},
		"value":        {Filter: aip.Compare{Field: build.FieldState, Op: aip.Equal, Value: "queued"}},
		"prefix":       {Filter: aip.Compare{Field: build.FieldState, Op: aip.HasPrefix, Value: build.Queued}},
		"nothing":      {Filter: aip.And{nil}},
		"order":        {Order: []aip.Order{{Field: "record"}}},
		"order by tag": {Order: []aip.Order{{Field: build.FieldTag}}},
	} {
		if _, _, err := store.List(t.Context(), query, 10, ""); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Those that have not ended are listed as they are, the first created first.
func (s suite) unended(t *testing.T) {
	dir := t.TempDir()
	store := s.open(t, dir)
	records := someBuilds(t, store, 30)
	want := slices.DeleteFunc(slices.Clone(records), func(rec build.Record) bool { return rec.State.Final() })
	got, err := store.Unended(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "those that have not ended", got, want)
	closeStore(t, store)
	store = s.reopen(t, dir)
	if got, err = store.Unended(t.Context()); err != nil {
		t.Fatal(err)
	}
	equal(t, "after opening again", got, want)
}
