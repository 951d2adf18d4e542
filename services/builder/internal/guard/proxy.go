package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// Bounds of the proxy.
const (
	maxConnections = 512             // requests and tunnels at once
	maxPerClient   = 256             // of one client address
	maxPerTarget   = 128             // to one host and port
	tunnelIdle     = 5 * time.Minute // without a byte in either direction
	maxLife        = 6 * time.Hour   // of a request or a tunnel
	viaName        = "1.1 kiln-egress"
)

// proxy is an HTTP proxy that dials for others what the guard allows.
type proxy struct {
	guard   *Guard
	forward *httputil.ReverseProxy
	slots   chan struct{} // one taken for each request

	mu   sync.Mutex
	held map[string]int // slots by client, and by target
}

// Proxy is an HTTP proxy for daemons that fetch by themselves: it looks hosts up,
// checks and dials in one go. It takes plain requests with an absolute URL, and
// CONNECT. What is refused gets 403 with the reason. A tunnel ends with the
// context of its request, which ServeProxy sees to.
func (g *Guard) Proxy() http.Handler { return g.newProxy() }

func (g *Guard) newProxy() *proxy {
	p := &proxy{guard: g, slots: make(chan struct{}, maxConnections), held: map[string]int{}}
	p.forward = &httputil.ReverseProxy{
		Transport:      checked{g},
		Rewrite:        rewrite,
		ModifyResponse: p.checkLocation,
		ErrorHandler:   p.fail,
		ErrorLog:       slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	return p
}

// ServeProxy serves Proxy on a listener, which it closes, until ctx ends, and
// returns when all that it serves has ended.
func (g *Guard) ServeProxy(ctx context.Context, listener net.Listener) error {
	p := g.newProxy()
	serving, stop := context.WithCancel(ctx)
	server := &http.Server{
		Handler:           lifecycle.Recovering(p),
		BaseContext:       func(net.Listener) context.Context { return serving },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-serving.Done()
		_ = server.Close() // What is under way has been told to end.
	}()
	err := server.Serve(listener)
	stop()
	<-closed
	for range cap(p.slots) { // Each is free once its request has ended.
		p.slots <- struct{}{}
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	release, refusal := p.acquire(r)
	if refusal != "" {
		http.Error(w, refusal, http.StatusServiceUnavailable)
		return
	}
	defer release()
	ctx, cancel := context.WithTimeout(r.Context(), maxLife)
	defer cancel()
	r = r.WithContext(ctx)
	switch {
	case strings.Contains(strings.Join(r.Header.Values("Via"), ","), viaName):
		http.Error(w, "the request has come through this proxy before", http.StatusLoopDetected)
	case r.Method == http.MethodConnect:
		p.connect(w, r)
	case !r.URL.IsAbs() || r.URL.Host == "":
		http.Error(w, "this is the egress proxy of a Kiln builder: it takes CONNECT and absolute URLs", http.StatusBadRequest)
	default:
		p.forward.ServeHTTP(w, r)
	}
}

// acquire takes a slot for a request, or says why there is none. One client cannot take the
// slots of others, nor can those who fetch from one slow server: a daemon fetches for all
// tenants from one address.
func (p *proxy) acquire(r *http.Request) (release func(), refusal string) {
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		client = r.RemoteAddr
	}
	keys := map[string]int{"client " + client: maxPerClient, "target " + strings.ToLower(r.URL.Host): maxPerTarget}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, most := range keys {
		if p.held[key] >= most {
			return nil, fmt.Sprintf("the egress proxy has %d connections of %s, which is the most; try again later", most, key)
		}
	}
	select {
	case p.slots <- struct{}{}:
	default:
		return nil, fmt.Sprintf("the egress proxy has %d connections, which is the most; try again later", maxConnections)
	}
	for key := range keys {
		p.held[key]++
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for key := range keys {
			if p.held[key]--; p.held[key] == 0 {
				delete(p.held, key)
			}
		}
		<-p.slots
	}, ""
}

// rewrite makes the request that goes on. ReverseProxy has taken the hop-by-hop
// headers out, but for an upgrade, which would make a tunnel without bounds.
func rewrite(r *httputil.ProxyRequest) {
	r.Out.Header.Del("Connection")
	r.Out.Header.Del("Upgrade")
	r.Out.Header.Add("Via", viaName)
	if _, set := r.Out.Header["User-Agent"]; !set {
		r.Out.Header.Set("User-Agent", "") // Else Go adds its own.
	}
}

// checkLocation refuses a redirect to what is not allowed: a client in Go asks no
// proxy for loopback addresses.
func (p *proxy) checkLocation(response *http.Response) error {
	location := response.Header.Get("Location")
	if location != "" {
		to, err := response.Request.URL.Parse(location)
		if err != nil {
			return malformed(location, "is no URL to be led to")
		}
		if err := p.guard.CheckURL(to.String()); err != nil {
			return err
		}
	}
	p.observe(response.Request.Context(), Allowed)
	return nil
}

// fail answers for what was refused or could not be reached.
func (p *proxy) fail(w http.ResponseWriter, r *http.Request, err error) {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		p.observe(r.Context(), Denied)
		p.guard.log.WarnContext(r.Context(), "refused to reach a host for a daemon", "error", f)
		http.Error(w, fault.Line(f), http.StatusForbidden)
		return
	}
	p.observe(r.Context(), Failed)
	http.Error(w, "the egress proxy cannot reach "+r.URL.Host+": "+err.Error(), http.StatusBadGateway)
}

func (p *proxy) observe(ctx context.Context, outcome string) {
	if p.guard.Observe != nil {
		p.guard.Observe(ctx, outcome)
	}
}
