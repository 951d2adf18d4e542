package guard

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
)

// request is one of a client's to a host.
func request(client, target string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "http://"+target+"/", nil)
	r.RemoteAddr = client + ":40000"
	return r
}

// acquireAll takes slots until one is refused, and returns how many it got.
func acquireAll(p *proxy, r *http.Request) (n int, release func()) {
	var all []func()
	for {
		free, refusal := p.acquire(r)
		if refusal != "" {
			return n, func() {
				for _, free := range all {
					free()
				}
			}
		}
		n++
		all = append(all, free)
	}
}

// Neither a client nor a slow server that many fetch from takes the slots of all others.
func TestProxy_BoundsSlotsPerClientAndPerTarget(t *testing.T) {
	p := New(Policy{}, slog.New(slog.DiscardHandler)).newProxy()
	var releases []func()
	take := func(client, target string, want int) {
		t.Helper()
		n, release := acquireAll(p, request(client, target))
		if n != want {
			t.Errorf("%s got %d slots to %s, want %d", client, n, target, want)
		}
		releases = append(releases, release)
	}
	take("10.0.0.1", "slow.example", maxPerTarget)
	take("10.0.0.2", "SLOW.example", 0)
	take("10.0.0.1", "other.example", maxPerClient-maxPerTarget)
	take("10.0.0.1", "third.example", 0)
	take("10.0.0.2", "third.example", maxPerTarget)
	for _, release := range releases {
		release()
	}
	if len(p.held) != 0 || len(p.slots) != 0 {
		t.Errorf("left after all was released: %v, %d", p.held, len(p.slots))
	}
	take("10.0.0.2", "slow.example", maxPerTarget)
}
