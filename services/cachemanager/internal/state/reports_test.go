package state_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/attribution"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/usage"
)

func report(id, project string, ended time.Time) attribution.Build {
	return attribution.Build{
		ID: id, Project: project, Images: []string{"r/" + project + ":1"}, Workers: []string{"w1"}, Ended: ended, Cached: 1, Total: 3,
		Steps: []attribution.Step{{Digest: "sha256:1", Name: "[1/1] RUN make", Start: now, End: now.Add(time.Second)}},
	}
}

// Reports wait until a listing of their daemon has learned from them, once, and count for
// the hit ratio for a week.
func TestReports(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "cache.db"))
	ctx := t.Context()
	add := func(b attribution.Build, at time.Time) {
		t.Helper()
		if err := s.AddReport(ctx, b, at); err != nil {
			t.Fatal(err)
		}
	}
	web := report("1", "web", now)
	add(web, now)
	add(report("1", "again", now), now) // is not counted
	add(report("2", "app", now), now.Add(time.Minute))
	reported := func(worker string, before time.Time) (ids []string) {
		t.Helper()
		for _, b := range must(s.Reported(ctx, []string{"w0", worker}, before))(t) {
			ids = append(ids, b.ID)
		}
		return ids
	}
	if diff := cmp.Diff([]attribution.Build{web}, must(s.Reported(ctx, []string{"w1"}, now.Add(time.Second)))(t)); diff != "" {
		t.Error(diff)
	}
	for _, c := range []struct {
		worker string
		before time.Time
		want   []string
	}{{"w1", now, nil}, {"w2", now.Add(time.Hour), nil}, {"w1", now.Add(time.Hour), []string{"1", "2"}}} {
		if diff := cmp.Diff(c.want, reported(c.worker, c.before)); diff != "" {
			t.Errorf("%+v: %s", c, diff)
		}
	}

	ref := cache.Ref{Daemon: "a"}
	use := attribution.Use{Projects: []string{"web"}, Images: []string{"r/web:1"}, Steps: []string{"sha256:1"}}
	if err := s.Learned(ctx, ref, attribution.Uses{"r1": use, "r2": use}, nil, []string{"1"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Learned(ctx, ref, nil, []string{"r2"}, nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(attribution.Uses{"r1": use}, must(s.Uses(ctx, ref))(t)); diff != "" {
		t.Error(diff)
	}
	if uses := must(s.Uses(ctx, cache.Ref{Daemon: "b"}))(t); len(uses) > 0 {
		t.Error(uses)
	}
	if diff := cmp.Diff([]string{"2"}, reported("w1", now.Add(time.Hour))); diff != "" {
		t.Error(diff)
	}

	hits := must(s.Hits(ctx, now.Add(-usage.HitWindow)))(t)
	if diff := cmp.Diff(map[string]usage.Hits{"web": {Cached: 1, Total: 3}, "app": {Cached: 1, Total: 3}}, hits); diff != "" {
		t.Error(diff)
	}
	// A day later, what no listing wanted is not kept for one any more; a week later,
	// nothing is.
	add(report("3", "late", now.Add(25*time.Hour)), now.Add(25*time.Hour))
	if diff := cmp.Diff([]string{"3"}, reported("w1", now.Add(48*time.Hour))); diff != "" {
		t.Error(diff)
	}
	later := now.Add(usage.HitWindow + 2*time.Hour)
	add(report("4", "later", later), later)
	if hits := must(s.Hits(ctx, time.Time{}))(t); len(hits) != 2 {
		t.Error(hits)
	}
}

// flaky is a store that fails once.
type flaky struct {
	attribution.Store
	err error
}

func (f *flaky) Learned(ctx context.Context, ref cache.Ref, known attribution.Uses, gone, builds []string) error {
	if err := f.err; err != nil {
		f.err = nil
		return err
	}
	return f.Store.Learned(ctx, ref, known, gone, builds)
}

// A book knows what its store does: what could not be stored is learned again; what is
// gone is forgotten, but not by a listing that is older than another.
func TestBook(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "cache.db"))
	ctx := t.Context()
	if err := s.AddReport(ctx, report("1", "web", now), now); err != nil {
		t.Fatal(err)
	}
	listing := func(at time.Time, ids ...string) *cache.Listing {
		l := &cache.Listing{Cache: cache.Ref{Daemon: "a"}, Time: at, Workers: []string{"w1"}}
		for _, id := range ids {
			l.Records = append(l.Records, cache.Record{ID: id, Type: cache.Regular, Description: "mount / from exec /bin/sh -c make", Created: now.Add(time.Millisecond)})
		}
		return l
	}
	book := &attribution.Book{Store: &flaky{s, context.DeadlineExceeded}}
	annotate := func(l *cache.Listing) []string {
		t.Helper()
		if err := book.Annotate(ctx, l); err != nil {
			t.Fatal(err)
		}
		return l.Records[0].Projects
	}
	if got := annotate(listing(now.Add(time.Second/2), "r")); got != nil {
		t.Errorf("%v: the listing may be from before the build", got)
	}
	if err := book.Annotate(ctx, listing(now.Add(time.Hour), "r")); err == nil {
		t.Error("an error was lost")
	}
	if got := annotate(listing(now.Add(time.Hour), "r")); len(got) != 1 || got[0] != "web" {
		t.Error(got)
	}
	if got := annotate(listing(now.Add(time.Minute), "x")); got != nil {
		t.Error(got)
	}
	if got := annotate(listing(now.Add(2*time.Hour), "r")); len(got) != 1 {
		t.Errorf("%v: forgotten by an old listing", got)
	}
	annotate(listing(now.Add(3*time.Hour), "x"))
	if uses := must(s.Uses(ctx, cache.Ref{Daemon: "a"}))(t); len(uses) > 0 {
		t.Error(uses)
	}
}
