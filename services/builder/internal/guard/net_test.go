package guard_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/testkit"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
)

// The tests allow one loopback address and refuse the other, so that both can be
// reached where they run.
const (
	allowedAddr = "127.0.0.2"
	refusedAddr = "127.0.0.1"
)

// names is a name server whose answers can change while it serves.
type names struct {
	answers atomic.Pointer[map[string][]netip.Addr]
}

func (n *names) set(answers map[string][]string) {
	parsed := make(map[string][]netip.Addr)
	for name, addrs := range answers {
		for _, addr := range addrs {
			parsed[name] = append(parsed[name], netip.MustParseAddr(addr))
		}
	}
	n.answers.Store(&parsed)
}

// guarded is a guard that allows allowedAddr alone, and asks a name server of its
// own.
func guarded(t *testing.T, answers map[string][]string) (*guard.Guard, *names) {
	t.Helper()
	n := new(names)
	n.set(answers)
	server := testkit.StartDNS(t, "127.0.0.1:0", func(name string) []netip.Addr { return (*n.answers.Load())[name] })
	g := newGuard(guard.Policy{Networks: networks(allowedAddr + "/32")})
	g.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	}}
	return g, n
}

// serve serves HTTP on an address, and returns the port.
func serve(t *testing.T, addr string, handler http.HandlerFunc) string {
	t.Helper()
	listener, err := net.Listen("tcp", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler}} //nolint:gosec // a test's
	server.Start()
	t.Cleanup(server.Close)
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

// secret serves what nobody may read, on the refused address, and fails the test
// when somebody comes.
func secret(t *testing.T) (port string) {
	t.Helper()
	return serve(t, refusedAddr, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was asked for %s", refusedAddr, r.URL) })
}

func TestCheckResolved(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	g, _ := guarded(t, map[string][]string{
		"public.example": {"8.8.8.8", "2606:4700::1111"}, "allowed.example": {allowedAddr},
		"private.example": {"10.0.0.1"}, "mixed.example": {"8.8.8.8", "10.0.0.1"}, "six.example": {"8.8.8.8", "::1"},
		"mapped.example": {"::ffff:7f00:1"}, "nat64.example": {"64:ff9b::a9fe:a9fe"}, "metadata.google.internal": {"169.254.169.254"},
	})
	for raw, want := range map[string]string{
		"https://public.example/":          ok,
		"https://Public.Example./":         ok,
		"git@allowed.example:a":            ok,
		"https://8.8.8.8/":                 ok,
		"https://private.example/":         refused,
		"git@private.example:a":            refused,
		"https://mixed.example/":           refused,
		"https://six.example/":             refused,
		"https://mapped.example/":          refused,
		"https://nat64.example/":           refused,
		"http://metadata.google.internal/": refused,
		"https://none.example/":            "SOURCE_NOT_FOUND",
		"https://127.0.0.1/":               refused,
	} {
		if got := reasonOf(t, g.CheckResolved(t.Context(), raw)); got != want {
			t.Errorf("%s: %q, want %q", raw, got, want)
		}
	}
}

func TestNameServerThatDoesNotAnswer(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	g := newGuard(guard.Policy{})
	g.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, silent.LocalAddr().String())
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := g.CheckResolved(ctx, "https://example.org/"); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("error %v", err)
	}
}

// get fetches with the guard's client.
func get(t *testing.T, g *guard.Guard, url string) (string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := g.Client(10 * time.Second).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func TestClient(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // It is not asked.
	victim := secret(t)
	var port string
	port = serve(t, allowedAddr, func(w http.ResponseWriter, r *http.Request) {
		to := func(url string) { http.Redirect(w, r, url, http.StatusFound) }
		switch r.URL.Path {
		case "/file":
			_, _ = io.WriteString(w, "content")
		case "/to-file":
			to("http://allowed.example:" + port + "/file")
		case "/to-address":
			to("http://" + refusedAddr + ":" + victim + "/")
		case "/to-name":
			to("http://refused.example:" + victim + "/")
		case "/to-number":
			to("http://2130706433:" + victim + "/")
		case "/to-mapped":
			to("http://[::ffff:127.0.0.1]:" + victim + "/")
		case "/to-file-scheme":
			to("file:///etc/passwd")
		case "/to-ssh":
			to("ssh://allowed.example/")
		case "/long-header":
			w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
		default:
			to(r.URL.Path + "x")
		}
	})
	g, _ := guarded(t, map[string][]string{
		"allowed.example": {allowedAddr}, "refused.example": {refusedAddr},
		"both.example": {refusedAddr, allowedAddr},
	})
	for url, want := range map[string]string{
		"http://allowed.example:%s/file":           ok,
		"http://allowed.example:%s/to-file":        ok,
		"http://127.0.0.2:%s/file":                 ok,
		"http://allowed.example:%s/to-address":     refused,
		"http://allowed.example:%s/to-name":        refused,
		"http://allowed.example:%s/to-number":      refused,
		"http://allowed.example:%s/to-mapped":      refused,
		"http://allowed.example:%s/to-file-scheme": refused,
		"http://allowed.example:%s/to-ssh":         refused,
		"http://refused.example:" + victim + "/":   refused,
		"http://" + refusedAddr + ":" + victim:     refused,
	} {
		if strings.Contains(url, "%s") {
			url = fmt.Sprintf(url, port)
		}
		body, err := get(t, g, url)
		if got := reasonOf(t, err); got != want || (want == ok && body != "content") {
			t.Errorf("%s: %q %v, want %q", url, body, err, want)
		}
	}
	for _, url := range []string{"http://allowed.example:%s/endless", "http://allowed.example:%s/long-header"} {
		if _, err := get(t, g, fmt.Sprintf(url, port)); err == nil {
			t.Errorf("%s: no error", url)
		}
	}
	// Of two addresses, the one that is allowed is taken, whichever comes first.
	if body, err := get(t, g, "http://both.example:"+port+"/file"); err != nil || body != "content" {
		t.Errorf("%q %v", body, err)
	}
}

// A name that leads elsewhere once it has been checked.
func TestRebinding(t *testing.T) {
	victim := secret(t)
	g, names := guarded(t, map[string][]string{"rebind.example": {allowedAddr}})
	url := "http://rebind.example:" + victim + "/"
	if err := g.CheckResolved(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	names.set(map[string][]string{"rebind.example": {refusedAddr}})
	if _, err := get(t, g, url); reasonOf(t, err) != refused {
		t.Errorf("error %v", err)
	}
	if _, err := g.Dial(t.Context(), "tcp", "rebind.example:"+victim); reasonOf(t, err) != refused {
		t.Errorf("error %v", err)
	}
}

func TestNoWayFromHTTPSToHTTP(t *testing.T) {
	client := newGuard(guard.Policy{}).Client(10 * time.Second)
	from := httptest.NewRequest(http.MethodGet, "https://example.org/", nil)
	to := httptest.NewRequest(http.MethodGet, "http://example.org/", nil)
	if err := client.CheckRedirect(to, []*http.Request{from}); reasonOf(t, err) != refused {
		t.Errorf("error %v", err)
	}
	if err := client.CheckRedirect(from, []*http.Request{to}); err != nil {
		t.Errorf("from http to https: %v", err)
	}
}

func TestDialTakesNoOtherNetwork(t *testing.T) {
	g := newGuard(guard.Policy{})
	for network, address := range map[string]string{"unix": "/run/docker.sock", "udp": "8.8.8.8:53", "tcp": "no-port"} {
		if _, err := g.Dial(t.Context(), network, address); reasonOf(t, err) != malformed {
			t.Errorf("%s %s: %v", network, address, err)
		}
	}
}
