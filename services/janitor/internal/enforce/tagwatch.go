package enforce

import (
	"context"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
)

// How often the watch looks at tags, how much of the time that may take (one in so many), and
// for how long after something went a push that wrote it may still write its tag.
const (
	watchEvery = time.Second
	watchShare = 5
	watchFor   = 10 * time.Second
)

// tagWatch looks at tags while manifests go. Where what is taken is copied and then deleted, a
// push may write a manifest's link between the last look at it and its deletion: the tag that
// it writes next could not be pulled until the phase is over.
type tagWatch struct {
	engine *Engine
	kept   map[string]bool      // manifests that stay, by repository and digest
	gone   map[string]bool      // and those that went
	went   map[string]time.Time // when the last one did, by repository
	next   time.Time            // the next look
}

func watch(e *Engine) *tagWatch {
	return &tagWatch{engine: e, kept: map[string]bool{}, gone: map[string]bool{}, went: map[string]time.Time{}, next: time.Now().Add(watchEvery)}
}

// took notes that a manifest went, and looks at tags when it is time to.
func (w *tagWatch) took(ctx context.Context, v plan.Verdict) error {
	if v.Kind != plan.Manifest || w.engine.Storage == nil || w.engine.Storage.Atomic() {
		return nil
	}
	w.gone[v.Repository+"@"+v.Digest] = true
	w.went[v.Repository] = time.Now()
	if time.Now().Before(w.next) {
		return nil
	}
	return w.look(ctx)
}

// look brings back what tags lead to, and stops to watch where nothing went for a while.
func (w *tagWatch) look(ctx context.Context) error {
	began := time.Now()
	var repositories []string
	for name, last := range w.went {
		if began.Sub(last) > watchFor {
			delete(w.went, name)
		}
		repositories = append(repositories, name)
	}
	back, err := mendRetagged(ctx, w.engine.Storage, repositories, w.gone)
	for _, key := range back {
		w.kept[key] = true
		delete(w.gone, key)
	}
	if err != nil {
		return err
	}
	w.next = time.Now().Add(max(watchEvery, watchShare*time.Since(began)))
	return nil
}

// mendRetagged brings back what tags of repositories lead to of that which went: manifests, by
// repository and digest. It returns what is back.
func mendRetagged(ctx context.Context, s Storage, repositories []string, gone map[string]bool) (back []string, _ error) {
	lacks, err := s.Retagged(ctx, repositories, func(repository string, d content.Digest) bool { return gone[repository+"@"+string(d)] })
	if err != nil {
		return nil, unreadable(err)
	}
	for _, l := range lacks {
		mended, err := s.Mend(l)
		if err != nil {
			return back, err
		}
		if mended {
			back = append(back, l.Repository+"@"+string(l.Digest))
		}
	}
	return back, nil
}

// end looks once more, when the pushes that were under way have written their tags.
func (w *tagWatch) end(ctx context.Context) error {
	if len(w.went) == 0 {
		return nil
	}
	if err := sleep(ctx, watchEvery); err != nil {
		return err
	}
	return w.look(ctx)
}
