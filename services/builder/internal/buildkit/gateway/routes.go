package gateway

import (
	"sync"
	"time"
)

// lingerFor is how long a route outlasts its build, so that calls which come after
// the end are answered at once: the daemon would look for the build for seconds.
const lingerFor = 10 * time.Second

// routes is the one table of what calls name: builds, by BuildKit's ref, and
// sessions, by their id. A route exists while a call names it, and that of a build
// for lingerFor after its end.
type routes struct {
	mu       sync.Mutex
	builds   map[string]*route
	sessions map[string]*sessionRoute
	secrets  map[owner]*clientSecrets // of clients with sessions
	probes   map[string]int           // internal solves under way, by identity
	opened   map[string]int           // sessions that are open, by identity
}

func newRoutes() *routes {
	return &routes{
		builds: make(map[string]*route), sessions: make(map[string]*sessionRoute),
		secrets: make(map[owner]*clientSecrets), probes: make(map[string]int), opened: make(map[string]int),
	}
}

// enter returns the route of a build, whether its Solve has come or is still to
// come. The caller must leave it.
func (t *routes) enter(ref string) *route {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.builds[ref]
	if r == nil {
		r = newRoute(ref)
		t.builds[ref] = r
	}
	r.calls++
	return r
}

func (t *routes) leave(r *route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.calls--; r.calls == 0 {
		delete(t.builds, r.ref)
	}
}

// linger leaves the route of a build that has ended, after lingerFor.
func (t *routes) linger(r *route) { time.AfterFunc(lingerFor, func() { t.leave(r) }) }

// Bounds of what one identity has at once.
const (
	// maxProbes bounds internal solves. A client opens one for each target of
	// `bake --call` and for each build with a policy.
	maxProbes = 2048
	// maxSessions bounds open sessions, each of which takes about 100 KiB. A client
	// opens one for each target of a bake.
	maxSessions = 4096
)

// probe counts an internal solve, unless its identity has too many under way.
func (t *routes) probe(of owner) (done func(), ok bool) {
	return t.count(t.probes, of.identity, maxProbes)
}

// open counts a session, unless its identity has too many open.
func (t *routes) open(of owner) (done func(), ok bool) {
	return t.count(t.opened, of.identity, maxSessions)
}

func (t *routes) count(counts map[string]int, identity string, most int) (done func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if counts[identity] >= most {
		return nil, false
	}
	counts[identity]++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if counts[identity]--; counts[identity] == 0 {
			delete(counts, identity)
		}
	}, true
}
