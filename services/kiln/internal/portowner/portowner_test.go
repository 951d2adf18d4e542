package portowner

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	for _, network := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"} {
		t.Run(network, func(t *testing.T) {
			listener, err := net.Listen("tcp", network)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			bound := netip.MustParseAddrPort(listener.Addr().String())
			ask := bound
			if bound.Addr().IsUnspecified() { // Whoever has all addresses has this one.
				ask = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), bound.Port())
			}

			owner, ok := Find(ask)
			if !ok || owner.PID != os.Getpid() {
				t.Fatalf("owner of %s = %+v, %v; want this process, %d", ask, owner, ok, os.Getpid())
			}
			if !strings.Contains(owner.Command, filepath.Base(os.Args[0])) {
				t.Errorf("command = %q, want %q in it", owner.Command, os.Args[0])
			}

			listener.Close()
			if owner, ok := Find(ask); ok {
				t.Errorf("a closed listener has owner %+v", owner)
			}
		})
	}
}

// A connection's own port is not a listener.
func TestConnectionsDoNotCount(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if owner, ok := Find(netip.MustParseAddrPort(conn.LocalAddr().String())); ok {
		t.Errorf("a connection is taken for a listener: %+v", owner)
	}
}

// Another user's process shows in the tables, but not its descriptors.
func TestInvisibleOwner(t *testing.T) {
	proc := t.TempDir()
	if err := os.MkdirAll(filepath.Join(proc, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	table := "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 0100007F:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n"
	if err := os.WriteFile(filepath.Join(proc, "net/tcp"), []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	owner, ok := find(proc, netip.MustParseAddrPort("127.0.0.1:5000"))
	if !ok || owner.PID != 0 || owner.String() != "a process that this user cannot see" {
		t.Errorf("got %v, %v", owner, ok)
	}
}
