package stepnet

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables/expr"
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
			if text, err := readMessage(conn); err == nil {
				_ = writeMessage(conn, append(text, mark...))
			}
			conn.Close()
		}
	}()
	return netip.MustParseAddrPort(streams.Addr().String())
}

// question returns a query for the records of a type of example.org.
func question(opcode byte, kind uint16) []byte {
	q := []byte{'i', 'd', opcode << 3, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	q = append(q, "\x07example\x03org\x00"...)
	return append(binary.BigEndian.AppendUint16(q, kind), 0, 1)
}

func startForwarder(t *testing.T, upstreams ...netip.AddrPort) string {
	t.Helper()
	return startForwarderFor(t, netip.MustParsePrefix("127.0.0.0/8"), upstreams...)
}

func startForwarderFor(t *testing.T, steps netip.Prefix, upstreams ...netip.AddrPort) string {
	t.Helper()
	f, err := listenDNSAt(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), steps, func() []netip.AddrPort { return upstreams })
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
	query := question(0, 1)
	for _, network := range []string{"udp", "tcp"} {
		got, err := ask(t, network, at, query)
		if err != nil || !bytes.Equal(got, append(query, "-second"...)) {
			t.Errorf("%s: %q, %v", network, got, err)
		}
	}
}

// ask sends a message and returns the answer.
func ask(t *testing.T, network, at string, query []byte) ([]byte, error) {
	t.Helper()
	conn, err := net.Dial(network, at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if network == "tcp" {
		if err := writeMessage(conn, query); err != nil {
			return nil, err
		}
		return readMessage(conn)
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buffer := make([]byte, maxMessage)
	n, err := conn.Read(buffer)
	return buffer[:n], err
}

// A name server may let this host change its zones, or read them whole: steps may not.
// Nor does the forwarder answer those who are no steps.
func TestForwarder_PassesOnNothingButQuestionsOfSteps(t *testing.T) {
	server := echoServer(t, "!")
	at := startForwarder(t, server)
	outside := startForwarderFor(t, netip.MustParsePrefix("10.213.0.0/24"), server)
	answer := question(0, 1)
	answer[2] |= 0x80
	compressed := append(question(0, 1)[:headerBytes], 0xc0, 12, 0, 1, 0, 1)
	for _, network := range []string{"udp", "tcp"} {
		for name, tc := range map[string]struct {
			to    string
			query []byte
			pass  bool
		}{
			"a question": {at, question(0, 1), true}, "an update": {at, question(5, 6), false},
			"a notification": {at, question(4, 6), false}, "a zone": {at, question(0, axfr), false},
			"changes of a zone": {at, question(0, ixfr), false}, "an answer": {at, answer, false},
			"no message": {at, []byte("GET / HTTP/1.1"), false}, "a name elsewhere": {at, compressed, false},
			"who is no step": {outside, question(0, 1), false},
		} {
			if got, err := ask(t, network, tc.to, tc.query); (err == nil) != tc.pass {
				t.Errorf("%s of %s: %q, %v", network, name, got, err)
			}
		}
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
	query := question(0, 1)
	for _, message := range []string{"", "short", string(query)} {
		if _, err := conn.Write([]byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	buffer := make([]byte, maxMessage)
	if n, err := conn.Read(buffer); err != nil || string(buffer[:n]) != string(query)+"!" {
		t.Errorf("%q, %v", buffer[:n], err)
	}
}

// What is denied is so also for addresses of this host that are in an allowed network.
func TestRules_DenyGoesBeforeAllow(t *testing.T) {
	host := netip.MustParsePrefix("10.20.0.7/32")
	cfg := Config{
		Bridge: "kiln0", Subnet: netip.MustParsePrefix("10.213.0.0/24"), Deny: []netip.Prefix{host},
		Allow: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
	}
	rules := cfg.rules()
	in := ifname(expr.MetaKeyIIFNAME, cfg.Bridge, expr.CmpOpEq)
	for name, chain := range map[string][][]expr.Any{"input": rules.input, "forward": rules.forward} {
		at := func(want []expr.Any) int {
			return slices.IndexFunc(chain, func(r []expr.Any) bool { return reflect.DeepEqual(r, want) })
		}
		denied, allowed := at(rule(in, destination(host), reject())), at(rule(in, destination(cfg.Allow[0]), accept()))
		if denied < 0 || allowed < denied {
			t.Errorf("%s: denied by rule %d, allowed by rule %d", name, denied, allowed)
		}
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
