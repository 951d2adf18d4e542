// Package quota accounts for the bytes of a store: those that are kept and those that
// are being written, of each tenant and of all. A store reserves bytes before it
// writes them, so that no client fills the disk.
package quota

import (
	"fmt"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Limits bounds a store, in bytes. 0: no bound.
type Limits struct {
	All  int64 // of all tenants
	Each int64 // of one tenant
}

// Account counts bytes. It decides nothing on what has to go.
type Account struct {
	limits Limits

	mu      sync.Mutex
	all     counted
	tenants map[string]counted
}

// counted is bytes that are kept, and that are reserved for writing.
type counted struct{ kept, writing int64 }

func (c counted) sum() int64 { return c.kept + c.writing }

// New returns an account of an empty store.
func New(limits Limits) *Account {
	return &Account{limits: limits, tenants: make(map[string]counted)}
}

// Set replaces what is kept, after a count. all may be less than the sum of tenants,
// which can share bytes.
func (a *Account) Set(all int64, tenants map[string]int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all.kept = all
	for name, c := range a.tenants {
		c.kept = 0
		a.put(name, c)
	}
	for name, bytes := range tenants {
		c := a.tenants[name]
		c.kept = bytes
		a.put(name, c)
	}
}

// Keep adds bytes to what is kept of a tenant and of all; less than 0 takes away.
func (a *Account) Keep(tenant string, bytes, all int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.tenants[tenant]
	c.kept += bytes
	a.put(tenant, c)
	a.all.kept += all
}

// put stores the count of a tenant; one that has nothing is forgotten. mu is held.
func (a *Account) put(tenant string, c counted) {
	if c == (counted{}) {
		delete(a.tenants, tenant)
		return
	}
	a.tenants[tenant] = c
}

// Reserve takes bytes for writing, if the tenant and the store have room for them.
// Free gives them back.
func (a *Account) Reserve(tenant string, bytes int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.overAll(bytes) || a.overEach(tenant, bytes) {
		return false
	}
	a.write(tenant, bytes)
	return true
}

// Free gives reserved bytes back: they were written, and are kept, or are not.
func (a *Account) Free(tenant string, bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.write(tenant, -bytes)
}

func (a *Account) write(tenant string, bytes int64) {
	c := a.tenants[tenant]
	c.writing += bytes
	a.put(tenant, c)
	a.all.writing += bytes
}

// Kept returns the bytes that are kept of all tenants.
func (a *Account) Kept() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.all.kept
}

// Of returns the bytes of a tenant, those that are being written included.
func (a *Account) Of(tenant string) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tenants[tenant].sum()
}

// OverAll reports whether the store has no room for more bytes.
func (a *Account) OverAll(bytes int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.overAll(bytes)
}

// OverEach reports whether a tenant has no room for more bytes.
func (a *Account) OverEach(tenant string, bytes int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.overEach(tenant, bytes)
}

func (a *Account) overAll(bytes int64) bool {
	return a.limits.All > 0 && a.all.sum()+bytes > a.limits.All
}

func (a *Account) overEach(tenant string, bytes int64) bool {
	return a.limits.Each > 0 && a.tenants[tenant].sum()+bytes > a.limits.Each
}

// Slack returns how many bytes a full store frees at once beyond those that it needs,
// so that not every write looks for room.
func (l Limits) Slack() int64 {
	slack := int64(64 << 20)
	for _, limit := range []int64{l.All, l.Each} {
		if limit > 0 {
			slack = min(slack, limit/20)
		}
	}
	return slack
}

// retryAfter is when it is worth trying again: builds and uploads under way give
// bytes back when they end.
const retryAfter = 30 * time.Second

// Full returns the RESOURCE_EXHAUSTED fault of a tenant whose bytes found no room.
// what names them, such as "contexts"; eachKey and allKey are the configuration's.
func (a *Account) Full(tenant, what, eachKey, allKey string) *fault.Error {
	a.mu.Lock()
	each, all := a.tenants[tenant].sum(), a.all.sum()
	limits := a.limits
	a.mu.Unlock()
	key := allKey
	message := fmt.Sprintf("the builder has no room for more %s: all projects use %d bytes of %d (%s)",
		what, all, limits.All, allKey)
	if limits.Each > 0 && (limits.All == 0 || limits.All-all > limits.Each-each) {
		key = eachKey
		message = fmt.Sprintf("project %q has no room for more %s: it uses %d bytes of %d (%s)",
			tenant, what, each, limits.Each, eachKey)
	}
	err := fault.New(fault.ResourceExhausted, "LIMIT_REACHED", message,
		"try again when builds and uploads under way have ended, send less, or have "+key+" of the builder raised")
	err.RetryAfter = retryAfter
	err.Metadata = map[string]string{"limit": key, "tenant": tenant}
	return err
}

// Grant is bytes that a writer has reserved. It is not safe for concurrent use.
type Grant struct {
	account        *Account
	tenant         string
	reserved, used int64
}

// Grant begins a reservation of nothing. Close it.
func (a *Account) Grant(tenant string) *Grant { return &Grant{account: a, tenant: tenant} }

// ahead is how much a writer reserves at once, so that small writes need no lock.
const ahead = 1 << 20

// Take counts bytes that are about to be written and reports whether there is room.
func (g *Grant) Take(bytes int64) bool {
	if g.used+bytes <= g.reserved {
		g.used += bytes
		return true
	}
	missing := g.used + bytes - g.reserved
	for _, more := range []int64{max(missing, ahead), missing} {
		if g.account.Reserve(g.tenant, more) {
			g.reserved += more
			g.used += bytes
			return true
		}
	}
	return false
}

// Close gives all bytes back. What was written and is kept must be kept before.
func (g *Grant) Close() {
	g.account.Free(g.tenant, g.reserved)
	g.reserved, g.used = 0, 0
}
