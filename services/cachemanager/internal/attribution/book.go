package attribution

import (
	"context"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Store is what outlives the process.
type Store interface {
	// Reported returns the builds on a daemon with one of these workers that were
	// reported before a time and not yet learned from, oldest first, at most some
	// hundreds.
	Reported(ctx context.Context, workers []string, before time.Time) ([]Build, error)
	// Uses returns what is known of the records of a cache.
	Uses(ctx context.Context, ref cache.Ref) (Uses, error)
	// Learned keeps what is known of these records of a cache, forgets others, and
	// that these builds were learned from.
	Learned(ctx context.Context, ref cache.Ref, known Uses, gone, builds []string) error
}

// Book remembers whose builds use which records.
type Book struct {
	Store Store

	mu    sync.Mutex
	pages map[cache.Ref]*page
}

// page is what is known of one cache.
type page struct {
	mu   sync.Mutex
	uses Uses
	seen time.Time // the listing that it was last brought up to
}

func (b *Book) page(ref cache.Ref) *page {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pages == nil {
		b.pages = map[cache.Ref]*page{}
	}
	if b.pages[ref] == nil {
		b.pages[ref] = &page{}
	}
	return b.pages[ref]
}

// settled is how long before a listing a build must have been reported for the listing to
// show what the build used.
const settled = time.Second

// Annotate says of each record of a daemon's listing whose builds use it, with what has
// been reported since the last one.
func (b *Book) Annotate(ctx context.Context, l *cache.Listing) error {
	if len(l.Workers) == 0 { // a directory: its tags know
		return nil
	}
	p := b.page(l.Cache)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.uses == nil {
		uses, err := b.Store.Uses(ctx, l.Cache)
		if err != nil {
			return err
		}
		p.uses = uses
	}
	if l.Time.After(p.seen) {
		if err := b.learn(ctx, p, l); err != nil {
			return err
		}
		p.seen = l.Time
	}
	for i, r := range l.Records {
		if use, ok := p.uses[r.ID]; ok {
			l.Records[i].Projects, l.Records[i].Images = use.Projects, use.Images
		}
	}
	return nil
}

// learn brings what is known up to a listing.
func (b *Book) learn(ctx context.Context, p *page, l *cache.Listing) error {
	builds, err := b.Store.Reported(ctx, l.Workers, l.Time.Add(-settled))
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(l.Records))
	for _, r := range l.Records {
		there[r.ID] = true
	}
	var gone []string
	for id := range p.uses {
		if !there[id] {
			gone = append(gone, id)
			delete(p.uses, id)
		}
	}
	changed := Uses{}
	for _, id := range p.uses.Learn(l.Records, builds) {
		changed[id] = p.uses[id]
	}
	ids := make([]string, len(builds))
	for i, build := range builds {
		ids[i] = build.ID
	}
	if len(gone) == 0 && len(builds) == 0 {
		return nil
	}
	if err := b.Store.Learned(ctx, l.Cache, changed, gone, ids); err != nil {
		p.uses = nil // as it is in the store
		return err
	}
	return nil
}
