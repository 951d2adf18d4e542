package client

import (
	"context"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// WithTokenFile shows the token in a file, in place of a certificate. The file is read again
// for each call, so that the token may be renewed. It is sent over TLS, unix sockets and
// loopback only.
func WithTokenFile(file string) Option {
	return func(s *settings) { s.token = file }
}

// TokenFile is the option of gRPC behind [WithTokenFile], for other clients. local says that
// what is sent stays on this host, so that it may go without TLS.
func TokenFile(file string, local bool) grpc.DialOption {
	return grpc.WithPerRPCCredentials(tokenFile{file, local})
}

type tokenFile struct {
	file  string
	local bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := os.ReadFile(t.file)
	if err != nil {
		return nil, fmt.Errorf("reading the token: %w", err)
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (t tokenFile) RequireTransportSecurity() bool { return !t.local }

var _ credentials.PerRPCCredentials = tokenFile{}
