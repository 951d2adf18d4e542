package enforce

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
	"github.com/kilnbuild/kiln/services/janitor/internal/state"
)

// pushed is a storage that something was pushed to.
type pushed struct {
	Storage
	atomic bool
	wants  []inventory.Lack
	takes  time.Duration // a look
	looked []string      // repositories, of the last look
	looks  int
	mended []inventory.Lack
}

func (*pushed) Fresh(string, func(content.Sum) bool) (inventory.Fresh, error) {
	return inventory.Fresh{}, nil
}

func (p *pushed) Atomic() bool { return p.atomic }

func (p *pushed) WantedIn(_ context.Context, repositories []string, _ inventory.Registry, taken func(string, content.Digest) bool) (some []inventory.Lack, _ error) {
	time.Sleep(p.takes)
	p.looks++
	p.looked = slices.Sorted(slices.Values(repositories))
	for _, l := range p.wants {
		if taken(l.Repository, l.Digest) {
			some = append(some, l)
		}
	}
	return some, nil
}

func (p *pushed) Mend(l inventory.Lack) (bool, error) {
	p.mended = append(p.mended, l)
	return true, nil
}

// The watch looks each second and for a share of the time, where something went a short while
// ago, and brings back what went and is wanted, and nothing else.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pushed{wants: []inventory.Lack{{Repository: "r", Digest: "d"}, {Repository: "other", Digest: "d"}, {Repository: "other", Digest: "b"}, {Repository: "r", Digest: "stays"}}}
		w := (&job{engine: &Engine{Options: Options{Storage: p}}}).watch()
		looks := func(want int, where ...string) {
			t.Helper()
			if p.looks != want || !slices.Equal(p.looked, where) {
				t.Errorf("%d looks, the last at %v; want %d, at %v", p.looks, p.looked, want, where)
			}
		}
		manifest := func(repository, digest string) {
			t.Helper()
			if err := w.manifestWent(t.Context(), plan.Verdict{Kind: plan.Manifest, Repository: repository, Digest: digest}); err != nil {
				t.Error(err)
			}
		}
		blob := func(digest content.Digest, repositories ...string) {
			t.Helper()
			if err := w.blobsWent(t.Context(), []inventory.Orphan{{Digest: digest, Repositories: repositories}}); err != nil {
				t.Error(err)
			}
		}
		manifest("r", "d")
		looks(0)
		time.Sleep(watchEvery)
		manifest("r", "e")
		looks(1, "r")
		if !slices.Equal(p.mended, p.wants[:1]) || !w.kept["r@d"] || w.kept["r@e"] {
			t.Errorf("mended %v, kept %v", p.mended, w.kept)
		}
		blob("b", "s", "t")
		looks(1, "r")
		time.Sleep(watchEvery)
		blob("c", "s")
		looks(2, "r", "s", "t")
		if !slices.Equal(p.mended, []inventory.Lack{p.wants[0], p.wants[2]}) {
			t.Errorf("mended %v", p.mended)
		}
		time.Sleep(watchFor + watchEvery)
		blob("c", "s")
		looks(3, "r", "s", "t") // once more, and no longer
		p.takes = 3 * time.Second
		time.Sleep(watchEvery)
		blob("c", "s")
		looks(4, "s")
		p.takes = 0
		time.Sleep(watchShare*3*time.Second - time.Millisecond)
		blob("c", "s")
		looks(4, "s")
		time.Sleep(time.Millisecond)
		blob("c", "s")
		looks(5, "s")
		before := time.Now()
		if err := w.end(t.Context()); err != nil || time.Since(before) != watchEvery {
			t.Errorf("the end took %s, %v", time.Since(before), err)
		}
		looks(6, "s")
	})
}

// Where nothing is lost for a moment, and where nothing went, there is nothing to look for.
func TestWatchIsNeedless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, p := range map[string]*pushed{"a disk": {atomic: true}, "a link went": {}} {
			w := (&job{engine: &Engine{Options: Options{Storage: p}}}).watch()
			time.Sleep(time.Hour)
			v := plan.Verdict{Kind: plan.Link, Repository: "r", Digest: "d"}
			if p.atomic {
				v.Kind = plan.Manifest
			}
			before := time.Now()
			if err := w.manifestWent(t.Context(), v); err != nil {
				t.Error(err)
			}
			if err := w.end(t.Context()); err != nil || p.looks > 0 || time.Since(before) > 0 {
				t.Errorf("%s: %d looks, %s, %v", name, p.looks, time.Since(before), err)
			}
		}
	})
}

// failing is a registry in which one manifest cannot be removed.
type failing struct {
	Remote
	digest content.Digest
}

var errFails = errors.New("it cannot be removed")

func (f failing) Delete(_ context.Context, _ string, d content.Digest, _ []string) (bool, error) {
	if d == f.digest {
		return false, errFails
	}
	return true, nil
}

// What went before a removal that fails is looked for as well.
func TestWatchLooksWhenARemovalFails(t *testing.T) {
	store, err := state.Open(t.Context(), filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	p := &pushed{wants: []inventory.Lack{{Repository: "r", Digest: "d"}}}
	j := &job{
		engine: &Engine{Options: Options{Storage: p, State: store, Remote: failing{digest: "e"}, Now: time.Now, Log: slog.New(slog.DiscardHandler)}},
		run:    run.Run{ID: "r", State: run.Running, Started: time.Now()}, active: newActive(run.Run{}, nil), allowed: map[string]bool{}, gone: map[string]bool{},
	}
	if _, _, err := store.StartRun(t.Context(), j.run); err != nil {
		t.Fatal(err)
	}
	for _, digest := range []string{"d", "e"} {
		j.given = append(j.given, plan.Verdict{Kind: plan.Manifest, Repository: "r", Digest: digest, Remove: true})
	}
	if err := j.manifests(t.Context()); !errors.Is(err, errFails) || !slices.Equal(p.mended, p.wants) {
		t.Errorf("%v, mended %v", err, p.mended)
	}
}
