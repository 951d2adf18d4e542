package enforce

import (
	"context"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
)

// How often the watch looks, how much of the time that may take (one in so many), and for how
// long after something went a push that wrote it may still write what tells of it.
const (
	watchEvery = time.Second
	watchShare = 5
	watchFor   = 10 * time.Second
)

// watch looks, while manifests and blobs go, whether pushes want them. Where what is taken is
// copied and then deleted, a push may write a link between the last look at it and its deletion:
// without the watch that would be away until the phase is over.
type watch struct {
	storage Storage
	marked  inventory.Registry
	kept    map[string]bool         // manifests that stay, by repository and digest
	gone    map[string]bool         // and those that went
	blobs   map[content.Digest]bool // that went
	went    map[string]time.Time    // when something last did, by repository
	next    time.Time               // the next look
}

func (j *job) watch() *watch {
	return &watch{
		storage: j.engine.Storage, marked: j.in.Registry, kept: map[string]bool{}, gone: map[string]bool{}, blobs: map[content.Digest]bool{},
		went: map[string]time.Time{}, next: time.Now().Add(watchEvery),
	}
}

// needless says that nothing is lost for a moment either.
func (w *watch) needless() bool { return w.storage == nil || w.storage.Atomic() }

// manifestWent notes that a manifest went, and looks when it is time to.
func (w *watch) manifestWent(ctx context.Context, v plan.Verdict) error {
	if v.Kind != plan.Manifest || w.needless() {
		return nil
	}
	w.gone[v.Repository+"@"+v.Digest] = true
	w.went[v.Repository] = time.Now()
	return w.tick(ctx)
}

// blobsWent notes that blobs or their links went, and looks when it is time to.
func (w *watch) blobsWent(ctx context.Context, some []inventory.Orphan) error {
	if w.needless() {
		return nil
	}
	now := time.Now()
	for _, o := range some {
		w.blobs[o.Digest] = true
		for _, repository := range o.In() {
			w.went[repository] = now
		}
	}
	return w.tick(ctx)
}

func (w *watch) tick(ctx context.Context) error {
	if time.Now().Before(w.next) {
		return nil
	}
	return w.look(ctx)
}

// look brings back what is wanted, and stops to watch where nothing went for a while.
func (w *watch) look(ctx context.Context) error {
	began := time.Now()
	var repositories []string
	for name, last := range w.went {
		if began.Sub(last) > watchFor {
			delete(w.went, name)
		}
		repositories = append(repositories, name)
	}
	lacks, err := w.storage.WantedIn(ctx, repositories, w.marked, func(repository string, d content.Digest) bool {
		return w.blobs[d] || w.gone[repository+"@"+string(d)]
	})
	if err != nil {
		return unreadable(err)
	}
	for _, l := range lacks {
		mended, err := w.storage.Mend(l)
		if err != nil {
			return err
		}
		if key := l.Repository + "@" + string(l.Digest); mended && w.gone[key] {
			w.kept[key] = true
			delete(w.gone, key)
		}
	}
	w.next = time.Now().Add(max(watchEvery, watchShare*time.Since(began)))
	return nil
}

// end looks once more, when the pushes that were under way have told what they want.
func (w *watch) end(ctx context.Context) error {
	if len(w.went) == 0 {
		return nil
	}
	if err := sleep(ctx, watchEvery); err != nil {
		return err
	}
	return w.look(ctx)
}
