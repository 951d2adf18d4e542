package rpc_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // The codec that rawCodec falls back to.
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// frame is a message that is passed on without being read.
type frame struct{ data []byte }

// rawCodec leaves frames as they are, as a gateway does.
type rawCodec struct{ encoding.CodecV2 }

func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return mem.BufferSlice{mem.SliceBuffer(f.data)}, nil
	}
	return c.CodecV2.Marshal(v)
}

func (c rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		f.data = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// echo sends each frame back, after its headers.
func echo(_ any, stream grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	if err := stream.SendHeader(metadata.MD{"seen": md.Get("x-many")}); err != nil {
		return err
	}
	for {
		var f frame
		if err := stream.RecvMsg(&f); err != nil {
			if err == io.EOF { //nolint:errorlint // grpc documents io.EOF itself.
				return status.Error(codes.Unimplemented, "as the daemon said it")
			}
			return err
		}
		if err := stream.SendMsg(&f); err != nil {
			return err
		}
	}
}

// Foreign services pass through untouched: frames are not read, time is not
// bounded, statuses are not explained; while our own methods stay strict on the
// same server.
func TestForeignServicesPassThrough(t *testing.T) {
	codec := rawCodec{encoding.GetCodecV2("proto")}
	config := loopback()
	config.Limits = limitsConfig()
	config.Limits.UnaryTimeout = durationpb.New(100 * time.Millisecond)
	r := start(t, rigOptions{config: config, server: []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec), grpc.UnknownServiceHandler(echo),
	}})
	ctx := metadata.AppendToOutgoingContext(within(t), "x-many", "a", "x-many", "b")
	stream, err := r.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		"/moby.buildkit.v1.Control/Session", grpc.ForceCodecV2(codec))
	if err != nil {
		t.Fatal(err)
	}
	header, err := stream.Header()
	if err != nil || len(header.Get("seen")) != 2 {
		t.Errorf("repeated metadata did not pass: %v %v", header, err)
	}
	time.Sleep(150 * time.Millisecond) // Longer than a unary call of ours may take.
	for i := range uint64(3) {
		sent := frame{data: binary.BigEndian.AppendUint64([]byte{0xff, 0xff}, i)} // No protobuf.
		if err := stream.SendMsg(&sent); err != nil {
			t.Fatal(err)
		}
		var got frame
		if err := stream.RecvMsg(&got); err != nil || string(got.data) != string(sent.data) {
			t.Fatalf("frame %d came back as %x: %v", i, got.data, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	err = stream.RecvMsg(&frame{})
	if st := status.Convert(err); st.Message() != "as the daemon said it" || len(st.Details()) != 0 {
		t.Errorf("the status was changed: %v %v", err, st.Details())
	}
	req := &builderv1.GetBuildRequest{BuildId: "b"}
	req.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 7))
	_, err = r.client.GetBuild(within(t), req)
	refused(t, err, codes.InvalidArgument, "UNKNOWN_FIELD")
}

// Ending the caller ends the handler.
func TestCancellationReachesTheHandler(t *testing.T) {
	entered, ended := make(chan struct{}), make(chan error, 1)
	r := start(t, rigOptions{impl: &builds{
		build: func(_ *builderv1.BuildRequest, stream grpc.ServerStreamingServer[builderv1.BuildResponse]) error {
			close(entered)
			<-stream.Context().Done()
			ended <- stream.Context().Err()
			return stream.Context().Err()
		},
	}})
	ctx, cancel := context.WithCancel(within(t))
	go func() {
		<-entered
		cancel()
	}()
	if code := status.Code(r.buildErr(ctx, inlineBuild(nil))); code != codes.Canceled {
		t.Errorf("the caller got %s", code)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the handler's context ended with %v", err)
		}
	case <-time.After(soon):
		t.Error("the handler goes on")
	}
}
