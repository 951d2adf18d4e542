package storage

import (
	"maps"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// known remembers manifests by their digests: they cannot change.
type known struct {
	mu  sync.Mutex
	all map[content.Sum]*content.Manifest
	// when is when configurations say that they were made.
	when map[content.Digest]time.Time
}

func (k *known) get(h content.Sum) (*content.Manifest, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m, ok := k.all[h]
	return m, ok
}

func (k *known) put(h content.Sum, m *content.Manifest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.all == nil {
		k.all = map[content.Sum]*content.Manifest{}
	}
	k.all[h] = m
}

func (k *known) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.all)
}

func (k *known) drop(h content.Sum) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.all, h)
}

func (k *known) made(config content.Digest) (time.Time, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.when[config]
	return at, ok
}

func (k *known) putMade(config content.Digest, at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.when == nil {
		k.when = map[content.Digest]time.Time{}
	}
	k.when[config] = at
}

func (k *known) keep(there map[content.Digest]bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	configs := map[content.Digest]bool{}
	maps.DeleteFunc(k.all, func(_ content.Sum, m *content.Manifest) bool {
		if len(k.when) > 0 && there[m.Digest] {
			configs[m.Config()] = true
		}
		return !there[m.Digest]
	})
	maps.DeleteFunc(k.when, func(d content.Digest, _ time.Time) bool { return !configs[d] })
}
