// Package protocodec encodes and decodes protobuf messages as BuildKit's programs do.
//
// The strings of BuildKit's messages need not be UTF-8: a file name or a build argument is
// whatever bytes its owner chose. BuildKit encodes its messages by generated code that does
// not check strings. The protobuf library does check them, and refuses such a message. Messages
// without that generated code, Kiln's own among them, are left to the protobuf library.
package protocodec

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// generated is a message with the encoding that vtprotobuf generates.
type generated interface {
	SizeVT() int
	MarshalToSizedBufferVT(data []byte) (int, error)
	UnmarshalVT(data []byte) error
}

// Marshal encodes a message.
func Marshal(m proto.Message) ([]byte, error) {
	vt, ok := m.(generated)
	if !ok {
		return proto.Marshal(m)
	}
	data := make([]byte, vt.SizeVT())
	n, err := vt.MarshalToSizedBufferVT(data)
	if err != nil {
		return nil, err
	}
	return data[len(data)-n:], nil
}

// Unmarshal decodes a message, after it has reset m.
func Unmarshal(data []byte, m proto.Message) error {
	vt, ok := m.(generated)
	if !ok {
		return proto.Unmarshal(data, m)
	}
	proto.Reset(m)
	return vt.UnmarshalVT(data)
}

// Codec is Marshal and Unmarshal as a gRPC codec with the name of the standard one.
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
	data, err := Marshal(m)
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
	return Unmarshal(buffer.ReadOnlyData(), m)
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
