package relay_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// service is a service of a client with one method, which a test says.
type service func(grpc.ServerStream) error

const methodCall = "/kiln.test.Service/Call"

func (s service) Register(server *grpc.Server) {
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "kiln.test.Service", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "Call", ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, stream grpc.ServerStream) error { return s(stream) },
		}},
	}, struct{}{})
}

func call(t testing.TB, ctx context.Context, conn *grpc.ClientConn) grpc.ClientStream { //nolint:revive // t is first
	t.Helper()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, methodCall,
		grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(16<<20))
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestLink_PassesMetadataTrailersAndDetails(t *testing.T) {
	caller := linked(t, service(func(stream grpc.ServerStream) error {
		in, _ := metadata.FromIncomingContext(stream.Context())
		if got := in.Get("include-patterns"); !slices.Equal(got, []string{"a", "b"}) || len(in.Get("raw-bin")) != 1 || in.Get("raw-bin")[0] != "\x00\xff" {
			return status.Errorf(codes.InvalidArgument, "the client got %v", in)
		}
		stream.SetTrailer(metadata.Pairs("tail", "t1", "tail", "t2"))
		if err := stream.SendHeader(metadata.Pairs("header", "h")); err != nil {
			return err
		}
		st, err := status.New(codes.DataLoss, "what the client says").WithDetails(durationpb.New(time.Minute))
		return errors.Join(err, st.Err())
	}))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "include-patterns", "a", "include-patterns", "b", "raw-bin", "\x00\xff")
	stream := call(t, ctx, caller.Conn())
	header, err := stream.Header()
	if err != nil || !slices.Equal(header.Get("header"), []string{"h"}) {
		t.Errorf("header %v, %v", header, err)
	}
	err = stream.RecvMsg(new(wrapperspb.BytesValue))
	if st := status.Convert(err); st.Code() != codes.DataLoss || len(st.Details()) == 0 {
		t.Errorf("%v %v", st, st.Details())
	}
	if got := stream.Trailer().Get("tail"); !slices.Equal(got, []string{"t1", "t2"}) {
		t.Errorf("trailer %v", got)
	}
}

func TestLink_PassesHalfCloseAndMessagesOf16MiB(t *testing.T) {
	caller := linked(t, service(func(stream grpc.ServerStream) error {
		count := 0
		for {
			message := new(wrapperspb.BytesValue)
			err := stream.RecvMsg(message)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			count += len(message.Value)
		}
		return stream.SendMsg(wrapperspb.Bytes(make([]byte, count)))
	}))
	stream := call(t, t.Context(), caller.Conn())
	for range 5 { // a session's client takes 4 MiB at most
		if err := stream.SendMsg(wrapperspb.Bytes(make([]byte, 3<<20))); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	message := new(wrapperspb.BytesValue)
	if err := stream.RecvMsg(message); err != nil || len(message.Value) != 15<<20 {
		t.Errorf("%d bytes, %v", len(message.Value), err)
	}
}

func TestLink_CancelsAtTheOtherEnd(t *testing.T) {
	canceled := make(chan struct{})
	caller := linked(t, service(func(stream grpc.ServerStream) error {
		_ = stream.SendHeader(nil)
		<-stream.Context().Done()
		close(canceled)
		return nil
	}))
	ctx, cancel := context.WithCancel(t.Context())
	stream := call(t, ctx, caller.Conn())
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	cancel()
	within(t, canceled, 5*time.Second, "the client's call goes on")
}

func TestLink_EndsCallsThatTheClientEnds(t *testing.T) {
	caller := linked(t, service(func(grpc.ServerStream) error { return status.Error(codes.Aborted, "enough") }))
	stream := call(t, t.Context(), caller.Conn())
	var err error
	for err == nil { // until the end has come
		err = stream.SendMsg(wrapperspb.Bytes(make([]byte, 1<<20)))
	}
	if err = stream.RecvMsg(new(wrapperspb.BytesValue)); status.Code(err) != codes.Aborted {
		t.Error(err)
	}
}

func TestLink_HoldsASenderBackWhoseReaderIsSlow(t *testing.T) {
	var sent atomic.Int64
	caller := linked(t, service(func(stream grpc.ServerStream) error {
		for {
			if err := stream.SendMsg(wrapperspb.Bytes(make([]byte, 1<<20))); err != nil {
				return err
			}
			sent.Add(1)
		}
	}))
	slow := call(t, t.Context(), caller.Conn())
	if _, err := slow.Header(); err != nil {
		t.Fatal(err)
	}
	last := int64(-1)
	for last != sent.Load() {
		last = sent.Load()
		time.Sleep(300 * time.Millisecond)
	}
	if last > 30 {
		t.Errorf("a client sent %d MiB that nobody has read", last)
	}
	// Others are not held up.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	beside := call(t, ctx, caller.Conn())
	if err := beside.RecvMsg(new(wrapperspb.BytesValue)); err != nil {
		t.Error(err)
	}
}
