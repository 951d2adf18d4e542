package rpc

import (
	"context"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// caught makes an error of a panic and reports it. The stack goes to the log only:
// Status says nothing of an error it does not know.
func caught(ctx context.Context, value any) error { return lifecycle.Recovered(ctx, value) }

func recoverUnary() grpc.UnaryServerInterceptor {
	return recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(caught))
}

func recoverStream() grpc.StreamServerInterceptor {
	return recovery.StreamServerInterceptor(recovery.WithRecoveryHandlerContext(caught))
}
