package guard_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/testkit"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
)

// startProxy serves a guard's proxy until the test ends, or stop is called.
func startProxy(t *testing.T, g *guard.Guard) (address string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.ServeProxy(ctx, listener) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the proxy has not ended")
		}
	})
	t.Cleanup(stop)
	return listener.Addr().String(), stop
}

// through is a client that uses a proxy for all it fetches.
func through(t *testing.T, proxy string) *http.Client {
	transport := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: proxy}),
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a test's server
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func fetch(t *testing.T, client *http.Client, url string) (status int, body string, err error) {
	t.Helper()
	response, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	return response.StatusCode, string(all), err
}

func TestProxy(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	victim := secret(t)
	var seen http.Header
	handler := func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Clone()
		switch r.URL.Path {
		case "/to-victim":
			http.Redirect(w, r, "http://"+refusedAddr+":"+victim+"/", http.StatusFound)
		case "/to-file":
			http.Redirect(w, r, "/file", http.StatusFound)
		default:
			w.Header().Set("Proxy-Authenticate", "Basic")
			_, _ = io.Copy(w, io.MultiReader(strings.NewReader("content "), r.Body))
		}
	}
	port := serve(t, allowedAddr, handler)
	g, names := guarded(t, map[string][]string{"allowed.example": {allowedAddr}, "refused.example": {refusedAddr}})
	outcomes := make(map[string]int)
	g.Observe = func(_ context.Context, outcome string) { outcomes[outcome]++ }
	proxy, stop := startProxy(t, g)
	client := through(t, proxy)

	t.Run("plain", func(t *testing.T) {
		request, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://allowed.example:"+port+"/file", strings.NewReader("sent"))
		for key, value := range map[string]string{
			"Connection": "X-Mine", "X-Mine": "1", "Proxy-Authorization": "Basic x", "Te": "gzip", "Upgrade": "websocket", "X-Kept": "1",
		} {
			request.Header.Set(key, value)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if body, _ := io.ReadAll(response.Body); string(body) != "content sent" || response.Header.Get("Proxy-Authenticate") != "" {
			t.Errorf("%q %v", body, response.Header)
		}
		for _, hop := range []string{"X-Mine", "Proxy-Authorization", "Te", "Upgrade", "Proxy-Connection", "X-Forwarded-For"} {
			if seen.Get(hop) != "" {
				t.Errorf("%s went on", hop)
			}
		}
		if seen.Get("X-Kept") == "" || seen.Get("Via") == "" {
			t.Errorf("went on: %v", seen)
		}
	})
	t.Run("redirect within", func(t *testing.T) {
		if status, body, err := fetch(t, client, "http://allowed.example:"+port+"/to-file"); status != 200 || err != nil {
			t.Errorf("%d %q %v", status, body, err)
		}
	})
	for name, url := range map[string]string{
		"name":     "http://refused.example:" + victim + "/",
		"number":   "http://2130706433:" + victim + "/",
		"redirect": "http://allowed.example:" + port + "/to-victim",
	} {
		t.Run("refused, "+name, func(t *testing.T) {
			if status, body, err := fetch(t, client, url); status != http.StatusForbidden || !strings.Contains(body, "policy") {
				t.Errorf("%d %q %v", status, body, err)
			}
		})
	}
	t.Run("gone", func(t *testing.T) {
		if status, body, err := fetch(t, client, "http://allowed.example:1/?hunter2"); status != http.StatusBadGateway || strings.Contains(body, "hunter2") {
			t.Errorf("%d %q %v", status, body, err)
		}
	})
	t.Run("rebinding", func(t *testing.T) {
		names.set(map[string][]string{"allowed.example": {refusedAddr}})
		if status, body, err := fetch(t, client, "http://allowed.example:"+victim+"/"); status != http.StatusForbidden {
			t.Errorf("%d %q %v", status, body, err)
		}
	})
	stop()
	if outcomes[guard.Allowed] < 2 || outcomes[guard.Denied] < 4 || outcomes[guard.Failed] != 1 {
		t.Errorf("observed %v", outcomes)
	}
}

func TestProxyTunnels(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	victim := secret(t)
	listener, err := net.Listen("tcp", allowedAddr+":0")
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { //nolint:gosec // a test's
		_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
	})}}
	server.StartTLS()
	defer server.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	g, _ := guarded(t, map[string][]string{"allowed.example": {allowedAddr}, "refused.example": {refusedAddr}})
	proxy, stop := startProxy(t, g)
	client := through(t, proxy)
	if status, body, err := fetch(t, client, "https://allowed.example:"+port+"/"); status != 200 || len(body) != 1<<20 || err != nil {
		t.Errorf("%d, %d bytes, %v", status, len(body), err)
	}
	for _, host := range []string{"refused.example", refusedAddr, "2130706433", "[::ffff:127.0.0.1]", "localhost"} {
		if _, _, err := fetch(t, client, "https://"+host+":"+victim+"/"); err == nil || !strings.Contains(err.Error(), "Forbidden") {
			t.Errorf("%s: %v", host, err)
		}
	}
	// A tunnel that is open ends with the proxy.
	conn := connectTo(t, proxy, "allowed.example:"+port, http.StatusOK)
	defer conn.Close()
	stop()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the tunnel goes on: %v", err)
	}
	client.CloseIdleConnections()
}

// connectTo asks for a tunnel, and fails the test unless the answer has a status.
func connectTo(t *testing.T, proxy, host string, status int) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", host, host)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || response.StatusCode != status {
		t.Fatalf("CONNECT %s: %v %v, want %d", host, response, err, status)
	}
	return conn
}

func TestTunnelPassesTheEndOfOneSideOn(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	listener, err := net.Listen("tcp", allowedAddr+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		all, _ := io.ReadAll(conn) // Until the client ends its side.
		_, _ = conn.Write(append([]byte("got "), all...))
	}()
	g, _ := guarded(t, nil)
	proxy, _ := startProxy(t, g)
	conn := connectTo(t, proxy, listener.Addr().String(), http.StatusOK)
	defer conn.Close()
	fmt.Fprint(conn, "all")
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); string(answer) != "got all" {
		t.Errorf("%q %v", answer, err)
	}
}

func TestProxyDoesNotTurnInACircle(t *testing.T) {
	testkit.VerifyNoLeaks(t)
	g := newGuard(guard.Policy{Networks: networks("127.0.0.0/8")})
	proxy, _ := startProxy(t, g)
	if status, body, err := fetch(t, through(t, proxy), "http://"+proxy+"/"); status != http.StatusLoopDetected {
		t.Errorf("%d %q %v", status, body, err)
	}
	connectTo(t, proxy, proxy, http.StatusLoopDetected).Close()
	// Two proxies that lead to one another.
	request := httptest.NewRequest(http.MethodGet, "http://example.org/", nil)
	request.Header.Set("Via", "1.1 other, 1.1 kiln-egress")
	recorder := httptest.NewRecorder()
	g.Proxy().ServeHTTP(recorder, request)
	if recorder.Code != http.StatusLoopDetected {
		t.Errorf("status %d", recorder.Code)
	}
}
