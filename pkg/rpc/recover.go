package rpc

import (
	"context"
	"runtime/debug"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// caught makes an error of a panic. The stack goes to the log only: Status says
// nothing of an error it does not know.
func caught(_ context.Context, value any) error {
	return &lifecycle.PanicError{Value: value, Stack: debug.Stack()}
}

func recoverUnary() grpc.UnaryServerInterceptor {
	return recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(caught))
}

func recoverStream() grpc.StreamServerInterceptor {
	return recovery.StreamServerInterceptor(recovery.WithRecoveryHandlerContext(caught))
}
