// Package rawcodec lets messages pass a gRPC server as the bytes that they are:
// those that the gateway passes on, and events that are encoded once for all
// that read them.
package rawcodec

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	"github.com/kilnbuild/kiln/pkg/grpccodec"
	"github.com/kilnbuild/kiln/pkg/protolimit"
)

// Frame is a message that is passed on as the bytes that came.
type Frame struct {
	Data mem.BufferSlice
}

// FrameOf makes a frame of bytes that must not change any more.
func FrameOf(data []byte) *Frame { return &Frame{Data: mem.BufferSlice{mem.SliceBuffer(data)}} }

// Codec passes frames on untouched. It encodes all other messages by protocodec, and
// decodes them within the bounds of protolimit. A server with the gateway must force it.
type Codec struct{}

var _ encoding.CodecV2 = Codec{}

// Name is that of the protobuf codec: on the wire there is no difference.
func (Codec) Name() string { return grpccodec.Codec{}.Name() }

// Marshal implements encoding.CodecV2.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *Frame:
		return m.Data, nil
	default:
		return grpccodec.Codec{}.Marshal(v)
	}
}

// Unmarshal implements encoding.CodecV2. A frame keeps the buffers, which gRPC
// would free: whoever sends it on frees them by that.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *Frame:
		data.Ref()
		m.Data = data
		return nil
	case proto.Message:
		return unmarshal(data, m)
	case protoadapt.MessageV1:
		return unmarshal(data, protoadapt.MessageV2Of(m))
	default:
		return fmt.Errorf("cannot decode into a %T", v)
	}
}

func unmarshal(data mem.BufferSlice, m proto.Message) error {
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	return protolimit.Unmarshal(buffer.ReadOnlyData(), m, protolimit.Default)
}
