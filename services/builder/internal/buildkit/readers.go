package buildkit

import (
	"context"
	"sync"
)

// readers bounds how many jobs open files of this host at once: of all tenants, and of each
// one, so that a tenant whose file system hangs leaves room for others.
type readers struct {
	all  chan struct{}
	each int

	mu      sync.Mutex
	tenants map[string]*tenantReaders
}

// tenantReaders are the jobs of one tenant, those that wait included.
type tenantReaders struct {
	slots chan struct{}
	jobs  int
}

func newReaders(all, each int) *readers {
	return &readers{all: make(chan struct{}, all), each: each, tenants: make(map[string]*tenantReaders)}
}

// acquire waits for room for a job of a tenant. release must be called unless it returns
// the cause of ctx.
func (r *readers) acquire(ctx context.Context, tenant string) (release func(), err error) {
	own := r.enter(tenant)
	select {
	case own.slots <- struct{}{}:
	case <-ctx.Done():
		r.leave(tenant, own)
		return nil, context.Cause(ctx)
	}
	select {
	case r.all <- struct{}{}:
	case <-ctx.Done():
		<-own.slots
		r.leave(tenant, own)
		return nil, context.Cause(ctx)
	}
	return func() {
		<-r.all
		<-own.slots
		r.leave(tenant, own)
	}, nil
}

func (r *readers) enter(tenant string) *tenantReaders {
	r.mu.Lock()
	defer r.mu.Unlock()
	own := r.tenants[tenant]
	if own == nil {
		own = &tenantReaders{slots: make(chan struct{}, r.each)}
		r.tenants[tenant] = own
	}
	own.jobs++
	return own
}

func (r *readers) leave(tenant string, own *tenantReaders) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if own.jobs--; own.jobs == 0 {
		delete(r.tenants, tenant)
	}
}
