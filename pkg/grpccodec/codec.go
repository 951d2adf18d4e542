// Package grpccodec is package protocodec as a codec of gRPC.
package grpccodec

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	"github.com/kilnbuild/kiln/pkg/protocodec"
)

// Codec encodes and decodes by protocodec, under the name of gRPC's own codec.
//
// BuildKit's own codec (util/grpcutil/encoding/proto) does not reset a message before it decodes
// into it; this one does.
type Codec struct{}

var _ encoding.CodecV2 = Codec{}

// Name returns the name of gRPC's protobuf codec: on the wire there is no difference.
func (Codec) Name() string { return grpcproto.Name }

// Marshal implements encoding.CodecV2.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	m := message(v)
	if m == nil {
		return nil, fmt.Errorf("cannot encode a %T: not a protobuf message", v)
	}
	data, err := protocodec.Marshal(m)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(data)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	m := message(v)
	if m == nil {
		return fmt.Errorf("cannot decode into a %T: not a protobuf message", v)
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	return protocodec.Unmarshal(buffer.ReadOnlyData(), m)
}

// message returns v as a protobuf message, and nil if it is none.
func message(v any) proto.Message {
	switch m := v.(type) {
	case proto.Message:
		return m
	case protoadapt.MessageV1:
		return protoadapt.MessageV2Of(m)
	default:
		return nil
	}
}
