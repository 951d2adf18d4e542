package rpc_test

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/testkit"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// hostAddress is an address of this host that is not loopback, "" when it has none.
func hostAddress(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		if network, ok := address.(*net.IPNet); ok && network.IP.To4() != nil && !network.IP.IsLoopback() {
			return network.IP.String()
		}
	}
	return ""
}

// Real calls, over each kind of connection.
func TestSecureTransport(t *testing.T) {
	p := newPKI(t)
	plain := func(listen string) *configv1.ServerConfig {
		return &configv1.ServerConfig{Listen: listen, HttpListen: "off", Insecure: true}
	}
	allowAll := &configv1.AccessRule{Identities: []string{"*"}, Methods: []string{"*"}}
	type test struct {
		config *configv1.ServerConfig
		tls    *configv1.ClientTLS
		want   bool
	}
	tests := map[string]test{
		"loopback":    {config: plain("127.0.0.1:0"), want: true},
		"unix socket": {config: plain("unix://" + testkit.TempUnixSocket(t)), want: true},
		"TLS":         {config: p.mutual(allowAll), tls: p.client, want: true},
	}
	if host := hostAddress(t); host != "" {
		// From this host to itself, and yet an address at which others may call.
		tests["the network"] = test{config: plain(host + ":0")}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var got bool
			r := start(t, rigOptions{config: test.config, tls: test.tls, impl: &builds{
				get: func(ctx context.Context, _ *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
					got = rpc.SecureTransport(ctx)
					return &builderv1.GetBuildResponse{}, nil
				},
			}})
			if err := getOne(within(t), r); err != nil {
				t.Fatal(err)
			}
			if got != test.want {
				t.Errorf("SecureTransport is %v, want %v", got, test.want)
			}
		})
	}
}

func TestSecureTransportOfAddresses(t *testing.T) {
	tcp := func(text string) net.Addr {
		address, err := net.ResolveTCPAddr("tcp", text)
		if err != nil {
			t.Fatal(err)
		}
		return address
	}
	for name, test := range map[string]struct {
		remote, local net.Addr
		want          bool
	}{
		"IPv4":              {tcp("127.0.0.1:5"), tcp("127.0.0.1:1"), true},
		"another loopback":  {tcp("127.9.9.9:5"), tcp("127.0.0.1:1"), true},
		"IPv6":              {tcp("[::1]:5"), tcp("[::1]:1"), true},
		"IPv4 in IPv6":      {tcp("[::ffff:127.0.0.1]:5"), tcp("[::ffff:127.0.0.1]:1"), true},
		"from the network":  {tcp("192.0.2.1:5"), tcp("127.0.0.1:1"), false},
		"to the network":    {tcp("127.0.0.1:5"), tcp("192.0.2.1:1"), false},
		"mapped, not local": {tcp("[::ffff:192.0.2.1]:5"), tcp("[::ffff:192.0.2.1]:1"), false},
		"unspecified":       {tcp("0.0.0.0:5"), tcp("0.0.0.0:1"), false},
		"link local":        {tcp("[fe80::1%eth0]:5"), tcp("[fe80::1%eth0]:1"), false},
		"unknown":           {nil, nil, false},
		"half known":        {tcp("127.0.0.1:5"), nil, false},
	} {
		ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: test.remote, LocalAddr: test.local})
		if got := rpc.SecureTransport(ctx); got != test.want {
			t.Errorf("%s: SecureTransport is %v, want %v", name, got, test.want)
		}
	}
	encrypted := &peer.Peer{Addr: tcp("192.0.2.1:5"), LocalAddr: tcp("192.0.2.2:1"), AuthInfo: credentials.TLSInfo{}}
	if !rpc.SecureTransport(peer.NewContext(t.Context(), encrypted)) {
		t.Error("TLS over the network is not secure")
	}
	if rpc.SecureTransport(t.Context()) {
		t.Error("a context without a call is secure")
	}
}
