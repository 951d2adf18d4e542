package builder

import (
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/rpc"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	"github.com/kilnbuild/kiln/proto/client"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// peer says how to reach another of Kiln's services.
type peer interface {
	GetAddress() string
	GetTls() *configv1.ClientTLS
	GetTokenFile() string
}

// dialPeer prepares a connection to another of Kiln's services.
func dialPeer(cfg peer, tel *telemetry.Telemetry) (*grpc.ClientConn, error) {
	opts := rpc.ClientOptions{TLS: cfg.GetTls(), Telemetry: tel}
	if file := cfg.GetTokenFile(); file != "" {
		opts.GRPC = append(opts.GRPC, client.TokenFile(file, client.IsLocal(cfg.GetAddress())))
	}
	return rpc.Dial(cfg.GetAddress(), opts)
}
