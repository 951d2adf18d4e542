package buildkitd

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kilnbuild/kiln/pkg/testkit"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// serve runs a gRPC server with a health service and returns its address, host:port.
func serve(t *testing.T, listen string, opts ...grpc.ServerOption) (address string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(opts...)
	healthgrpc.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(l) }() // ends by Stop, which closes the listener
	t.Cleanup(server.Stop)
	return l.Addr().String(), server.Stop
}

// slowLink passes connections on to target. It holds each piece of data back for delay.
func slowLink(t *testing.T, target string, delay time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	pipe := func(to, from net.Conn) {
		defer to.Close()
		buffer := make([]byte, 32<<10)
		for {
			n, err := from.Read(buffer)
			time.Sleep(delay)
			if _, writeErr := to.Write(buffer[:n]); err != nil || writeErr != nil {
				return
			}
		}
	}
	go func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", target)
			if err != nil {
				_ = down.Close()
				continue
			}
			go pipe(up, down)
			go pipe(down, up)
		}
	}()
	return l.Addr().String()
}

// certificates returns the certificates of a server and a client of localhost.
func certificates(t *testing.T) (grpc.ServerOption, *configv1.ClientTLS) {
	t.Helper()
	ca := testkit.NewCA(t, "test")
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ca.Issue(t, cert, key, "buildkitd")
	creds, err := credentials.NewServerTLSFromFile(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return grpc.Creds(creds), &configv1.ClientTLS{CaFile: ca.File}
}

// ask makes one call and waits for the connection.
func ask(t *testing.T, conn grpc.ClientConnInterface, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	_, err := healthgrpc.NewHealthClient(conn).Check(ctx, &healthgrpc.HealthCheckRequest{}, grpc.WaitForReady(true))
	return err
}

func connect(t *testing.T, opts Options) *grpc.ClientConn {
	t.Helper()
	conn, err := Conn(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// The delays are far above gRPC's first backoff of 100 ms, which bounds an attempt to connect
// where no MinConnectTimeout is set.
func TestConn_ReachesDaemonBehindSlowLink(t *testing.T) {
	serverTLS, clientTLS := certificates(t)
	plain, _ := serve(t, "127.0.0.1:0")
	secure, _ := serve(t, "127.0.0.1:0", serverTLS)
	for name, test := range map[string]struct {
		target string
		tls    *configv1.ClientTLS
		delay  time.Duration
		within time.Duration
	}{
		// The server's first frame, then the call and its answer: 4 delays at most.
		"plain text": {plain, nil, 350 * time.Millisecond, 2 * time.Second},
		// Two more for the handshake.
		"TLS": {secure, clientTLS, 900 * time.Millisecond, 8 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := slowLink(t, test.target, test.delay)
			conn := connect(t, Options{Daemon: &configv1.DaemonConfig{Address: "tcp://" + address, Tls: test.tls}})
			if err := ask(t, conn, test.within); err != nil {
				t.Errorf("not reached within %v: %v", test.within, err)
			}
		})
	}
}

func TestConn_ReachesRestartedDaemonWithinSeconds(t *testing.T) {
	address, stop := serve(t, "127.0.0.1:0")
	conn := connect(t, Options{Daemon: &configv1.DaemonConfig{Address: "tcp://" + address}})
	if err := ask(t, conn, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	stop()
	time.Sleep(4 * time.Second) // the backoff has reached its bound
	serve(t, address)
	if err := ask(t, conn, maxBackoff+time.Second); err != nil {
		t.Errorf("not reached within %v after the restart: %v", maxBackoff+time.Second, err)
	}
}

// A daemon whose certificate is for another name than its address is reached by tls.server_name,
// over the connection and BuildKit's client alike.
func TestDial_UsesServerName(t *testing.T) {
	serverTLS, clientTLS := certificates(t)
	address, _ := serve(t, "127.0.0.2:0", serverTLS) // the certificate is for 127.0.0.1 and localhost
	daemon := &configv1.DaemonConfig{Name: "d", Address: "tcp://" + address, Tls: clientTLS}
	if err := ask(t, connect(t, Options{Daemon: daemon}), time.Second); err == nil {
		t.Fatal("connected to a server with the certificate of another host")
	}
	clientTLS.ServerName = "localhost"
	if err := ask(t, connect(t, Options{Daemon: daemon}), 5*time.Second); err != nil {
		t.Errorf("with the server name: %v", err)
	}
	c, err := Client(t.Context(), Options{Daemon: daemon})
	if err != nil {
		t.Fatalf("BuildKit's client with the server name: %v", err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	// The server is no buildkitd: that it says so shows that it was reached.
	if _, err := c.Info(ctx); err == nil || !strings.Contains(err.Error(), "unknown service") {
		t.Errorf("BuildKit's client with the server name: %v", err)
	}
}

func TestDial_RefusesWithReason(t *testing.T) {
	for name, test := range map[string]struct {
		daemon *configv1.DaemonConfig
		says   string
	}{
		"TLS on a socket":   {&configv1.DaemonConfig{Address: "unix:///d.sock", Tls: &configv1.ClientTLS{}}, "does not use TLS on a unix socket"},
		"a helper's form":   {&configv1.DaemonConfig{Address: "ssh://host"}, "does not run ssh"},
		"a missing CA":      {&configv1.DaemonConfig{Address: "tcp://h:1", Tls: &configv1.ClientTLS{CaFile: "/nonexistent"}}, "/nonexistent"},
		"the daemon's name": {&configv1.DaemonConfig{Name: "east", Address: "h:1"}, `daemon "east"`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Conn(Options{Daemon: test.daemon}); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Conn: %v, want %q", err, test.says)
			}
			if _, err := Client(t.Context(), Options{Daemon: test.daemon}); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Client: %v, want %q", err, test.says)
			}
		})
	}
}

// A call on a link that lost its peer without a word ends with its own deadline.
func TestConn_CallOnDeadLinkEndsWithItsDeadline(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			silent, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, silent) }()
		}
	}()
	conn := connect(t, Options{Daemon: &configv1.DaemonConfig{Address: "tcp://" + l.Addr().String()}})
	began := time.Now()
	if err := ask(t, conn, 500*time.Millisecond); err == nil || time.Since(began) > 3*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}
