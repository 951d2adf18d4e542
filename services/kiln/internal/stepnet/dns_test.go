package stepnet

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// echoServer answers each message of DNS with the same message and a mark, by UDP and TCP.
func echoServer(t *testing.T, mark string) netip.AddrPort {
	t.Helper()
	streams, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp4", streams.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = streams.Close(), packets.Close() })
	go func() {
		buffer := make([]byte, maxMessage)
		for {
			n, from, err := packets.ReadFrom(buffer)
			if err != nil {
				return
			}
			// An answer to somebody else's query first: the forwarder must not take it.
			_, _ = packets.WriteTo([]byte("xx another answer"), from)
			_, _ = packets.WriteTo(append(buffer[:n:n], mark...), from)
		}
	}()
	go func() {
		for {
			conn, err := streams.Accept()
			if err != nil {
				return
			}
			text, _ := io.ReadAll(conn)
			_, _ = conn.Write(append(text, mark...))
			conn.Close()
		}
	}()
	return netip.MustParseAddrPort(streams.Addr().String())
}

func startForwarder(t *testing.T, upstreams ...netip.AddrPort) string {
	t.Helper()
	f, err := listenDNSAt(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), func() []netip.AddrPort { return upstreams })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return f.streams.Addr().String()
}

func TestForwarder_AsksTheFirstServerThatAnswers(t *testing.T) {
	// Nothing listens on port 1: the kernel says so at once.
	at := startForwarder(t, netip.MustParseAddrPort("127.0.0.1:1"), echoServer(t, "-second"))
	query := []byte("id and a query of some length")
	for _, network := range []string{"udp", "tcp"} {
		conn, err := net.Dial(network, at)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Write(query); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, maxMessage)
		var got []byte
		if network == "tcp" {
			_ = conn.(*net.TCPConn).CloseWrite()
			got, err = io.ReadAll(conn)
		} else {
			var n int
			n, err = conn.Read(buffer)
			got = buffer[:n]
		}
		if err != nil || !bytes.Equal(got, append(query, "-second"...)) {
			t.Errorf("%s: %q, %v", network, got, err)
		}
		conn.Close()
	}
}

func TestForwarder_SurvivesWhatIsNoQuery(t *testing.T) {
	at := startForwarder(t, echoServer(t, "!"))
	conn, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	for _, message := range []string{"", "short", "id and a query"} {
		if _, err := conn.Write([]byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	buffer := make([]byte, maxMessage)
	if n, err := conn.Read(buffer); err != nil || string(buffer[:n]) != "id and a query!" {
		t.Errorf("%q, %v", buffer[:n], err)
	}
}

func TestHostResolvers_FollowTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	servers := hostResolvers(path)
	if got := servers(); !slices.Equal(got, defaultResolvers) {
		t.Errorf("without a file: %v", got)
	}
	for i, tc := range []struct {
		text string
		want []string
	}{
		{"# none\nsearch example.org\n", []string{"127.0.0.1:53"}},
		{"nameserver 127.0.0.53\noptions edns0\n", []string{"127.0.0.53:53"}},
		{"nameserver 10.0.0.2\nnameserver bad\nnameserver fd00::1\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n", []string{"10.0.0.2:53", "[fd00::1]:53", "10.0.0.3:53"}},
	} {
		if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(time.Duration(i) * time.Hour)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, server := range servers() {
			got = append(got, server.String())
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%q: %v, want %v", tc.text, got, tc.want)
		}
	}
}
